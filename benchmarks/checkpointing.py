"""Measures the savings and cost of checkpointing: memory and time of the masking network's hypergradient, with and
without it.

Memory is the largest total size of the hypergradient's live tensors (``MemoryTracker``). Time is CPU time over all
threads; the sides take turns, and the result is the median of the ratios.

    python benchmarks/checkpointing.py data.path=DIR
    python benchmarks/checkpointing.py --solvers "identity product=forward" data.path=DIR model.depth=12
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from side_by_side import Spread, alternate, conditions, ratio

from multilevel.compare.memory import MemoryTracker
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.problems.evaluation.evaluator import module_device
from multilevel.solvers.vectors import flatten

MIB = 2**20
SOLVERS = (
    "identity product=reverse",
    "identity product=forward",
    "finite_difference",
    "conjugate_gradient product=reverse iterations=3 damping=100",
    "conjugate_gradient product=forward iterations=3 damping=100",
    "conjugate_gradient product=reverse iterations=3 damping=100 curvature=gauss_newton",
    "unrolled product=reverse",
)


def engine_of(solver: str, overrides: list[str], checkpointing: bool) -> Engine:
    """An engine after one step."""
    name, *options = solver.split()
    chosen = [f"solver={name}", *(f"solver.{option}" for option in options)]
    settings = ["data=cifar10", "data.limit=2000", "model=small", *chosen, *overrides]
    recipe = build_recipe(compose_config([*settings, f"checkpointing={str(checkpointing).lower()}"]))
    engine = Engine(recipe.graph, precision=recipe.settings.precision)
    engine.run(1)
    return engine


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed hypergradients of each side (default 3)")
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, help="each a name and options, in quotes")
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="as for multilevel train")
    options = parser.parse_intermixed_args(arguments)
    print(conditions(options.rounds, "cpu", options.overrides))
    for solver in options.solvers:
        engines = {side: engine_of(solver, options.overrides, side == "with") for side in ("without", "with")}
        peaks, found = {}, {}
        for side, engine in engines.items():
            with MemoryTracker(module_device(engine.graph.problems["mask"].module)) as tracker:
                found[side] = flatten(engine.hypergradient("mask"))
            peaks[side] = tracker.peak / MIB
        error = ((found["without"] - found["with"]).norm() / found["without"].norm()).item()
        sides = {side: partial(engine.hypergradient, "mask") for side, engine in engines.items()}
        seconds = alternate(sides, options.rounds, "cpu")
        factor = ratio(seconds["with"], seconds["without"])
        print(
            f"{solver}: {peaks['without']:.0f} MiB without, {peaks['with']:.0f} MiB with "
            f"({peaks['with'] / peaks['without']:.2f}x); {Spread.of(seconds['without']).median:.2f} s without, "
            f"{factor.median:.2f}x with; relative difference {error:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
