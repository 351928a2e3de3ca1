"""Measures how the time and memory of an outer step grow with width, depth, batch, number of levels, and work of the
solver.

    width, depth, batch    the guided autoencoder: plain steps with no hypergradient, the direct path, both paths
    terms, iterations      the same, with a Neumann series of so many terms, or so many conjugate gradient iterations
    levels                 a chain of small levels: each reads the one below, and the lowest the top one
    nested                 the same, and each reads the one above as well: third derivatives, solved exactly

All points of an axis take turns in one process; a ratio is the median over rounds. Memory is the largest total size of
the live tensors made in one step.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --axes width,terms --rounds 9 data.batch_size=64 precision=bf16
    python benchmarks/scaling.py --axes levels --values 2,4,8 solver=neumann
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from guided_mae_step import PlainSteps, recipe_of
from side_by_side import Iterate, Spread, add_clock, alternate, conditions, ratio
from torch import Tensor, nn
from tqdm import tqdm

from multilevel.compare.memory import MemoryTracker
from multilevel.configuration.composition import compose_config
from multilevel.problems import Callback, Engine, Graph, Problem
from multilevel.problems.callbacks import Update
from multilevel.problems.levels import Levels
from multilevel.recipes.settings import chosen_device
from multilevel.runs.training import new_engine
from multilevel.solvers import SOLVERS
from multilevel.solvers.registry import build

GENERATED = "data=planted data.image_size=32 data.channels=3 data.batch_size=32".split()
#: Neither ends early: the damping makes the Hessian positive definite, and no tolerance is met.
FULL_SOLVE = "solver.tolerance=0.0 solver.damping=60.0"
LINK_WIDTH, LINK_BATCH = 256, 256  # of a level of a chain


class Products(Callback):
    """Hessian-vector and mixed products of the top level's last update."""

    def __init__(self) -> None:
        self.count = 0

    def on_update(self, engine: Engine, update: Update) -> None:
        if update.level == engine.graph.top:
            self.count = sum(report.products for report in update.solves.values())


@dataclass
class Point:
    """One side at one value of an axis.

    Attributes:
        value: where on the axis.
        side: plain, direct, both or chain.
        iterate: one outer step.
        products: counts them; None without an engine.
    """

    value: int
    side: str
    iterate: Iterate
    products: Products | None = None

    @classmethod
    def of_engine(cls, value: int, side: str, engine: Engine) -> Point:
        products = Products()
        engine.callbacks.append(products)
        return cls(value, side, lambda: engine.run(1), products)


def sizes(setting: str) -> Callable[[Sequence[int], list[str]], list[Point]]:
    """Plain steps, the direct path and both paths at each value of a setting."""

    def points(values: Sequence[int], overrides: list[str]) -> list[Point]:
        found = []
        for value in values:
            given = [*overrides, f"{setting}={value}"]
            found.append(Point(value, "plain", PlainSteps(recipe_of(given, "both")).iterate))
            for paths in ("direct", "both"):
                found.append(Point.of_engine(value, paths, new_engine(recipe_of(given, paths))))
        return found

    return points


def solves(settings: str, option: str) -> Callable[[Sequence[int], list[str]], list[Point]]:
    """Both paths, with a solver at each value of one of its options."""

    def points(values: Sequence[int], overrides: list[str]) -> list[Point]:
        given = [*settings.split(), *FULL_SOLVE.split(), *overrides]
        recipes = {value: recipe_of([*given, f"{option}={value}"], "both") for value in values}
        return [Point.of_engine(value, "both", new_engine(recipe)) for value, recipe in recipes.items()]

    return points


class Link(Problem):
    """A linear map that imitates those of the levels it reads, bent: convex in its own parameters.

    Args:
        neighbours: names of the levels it reads.
    """

    def __init__(self, *arguments: Any, neighbours: Sequence[str], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.neighbours = neighbours

    def loss(self, levels: Levels, batch: Any, draws: Any) -> Tensor:
        own = getattr(levels, self.name)
        target = sum(getattr(levels, name)(batch).tanh() for name in self.neighbours)
        return (own(batch) - target).square().mean() + 0.1 * own.weight.square().sum()


def chains(nested: bool) -> Callable[[Sequence[int], list[str]], list[Point]]:
    """A chain of each number of levels."""

    def points(values: Sequence[int], overrides: list[str]) -> list[Point]:
        config = compose_config(overrides)
        options = {key: value for key, value in config.solver.items() if key != "name"}
        engines = {
            value: Engine(chain(value, nested, config.solver.name, options, config.device), precision=config.precision)
            for value in values
        }
        return [Point.of_engine(value, "chain", engine) for value, engine in engines.items()]

    return points


def chain(count: int, nested: bool, solver: str, options: dict[str, Any], device: str) -> Graph:
    """So many levels, bottom level first."""
    torch.manual_seed(0)
    levels = []
    for number in range(count):
        below = [number - 1] if number else []
        above = [number + 1] if nested and number < count - 1 else []
        reads = {*below, *above, *([] if number else [count - 1])}
        module = nn.Linear(LINK_WIDTH, LINK_WIDTH).to(chosen_device(device))
        levels.append(
            Link(
                f"level{number}",
                module,
                neighbours=[f"level{other}" for other in sorted(reads)],
                optimizer=torch.optim.SGD(module.parameters(), 1e-3),
                data=[torch.randn(LINK_BATCH, LINK_WIDTH)],
                solver=build("solver", SOLVERS, solver, options),
            )
        )
    return Graph(*levels)


#: Of each axis, its default values and what makes its points.
AXES = {
    "width": ((96, 192, 384), sizes("model.width")),
    "depth": ((2, 6, 12), sizes("model.depth")),
    "batch": ((16, 32, 64, 128), sizes("data.batch_size")),
    "terms": ((1, 2, 4, 8), solves("solver=neumann solver.step_size=0.001", "solver.terms")),
    "iterations": ((1, 2, 4, 8), solves("solver=conjugate_gradient", "solver.iterations")),
    "levels": ((2, 3, 4, 5, 6), chains(nested=False)),
    "nested": ((2, 3, 4), chains(nested=True)),
}


def peak_mib(point: Point, device: torch.device) -> float:
    """Memory of a step in MiB, the one before having made the optimizers' state."""
    point.iterate()
    with MemoryTracker(device) as tracker:
        point.iterate()
    return tracker.peak / 2**20


def print_axis(axis: str, points: list[Point], rounds: int, clock: str, device: torch.device) -> None:
    memory = [peak_mib(point, device) for point in tqdm(points, axis, disable=None, leave=False)]
    taken = list(alternate({str(number): point.iterate for number, point in enumerate(points)}, rounds, clock).values())
    plain = {point.value: times for point, times in zip(points, taken, strict=True) if point.side == "plain"}
    widths = f"{'x first':>8} {'x plain':>8} {'MiB':>8} {'x first':>8}  products"
    print(f"\n{axis:<12} {'side':<8} {'seconds a step':<24} {widths}")
    for number, point in enumerate(points):
        first = next(place for place, one in enumerate(points) if one.side == point.side)
        growth = ratio(taken[number], taken[first]).median
        to_plain = f"{ratio(taken[number], plain[point.value]).median:.2f}" if plain else "-"
        products = "-" if point.products is None else point.products.count
        print(
            f"{point.value:<12} {point.side:<8} {Spread.of(taken[number]).text(3):<24} {growth:>8.2f} {to_plain:>8} "
            f"{memory[number]:>8.1f} {memory[number] / memory[first]:>8.2f}  {products}"
        )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(AXES), metavar="A,B", help=f"of {', '.join(AXES)} (default all)")
    parser.add_argument("--values", metavar="N,N", help="of the axis, if there is only one")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each point (default 5)")
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="of all points, as for multilevel train")
    add_clock(parser)
    options = parser.parse_intermixed_args(arguments)
    axes = options.axes.split(",")
    for axis in axes:
        if axis not in AXES:
            parser.error(f"argument --axes: got {axis}; expected some of {', '.join(AXES)}")
    if options.values and len(axes) > 1:
        parser.error(f"argument --values: got {options.values} for {len(axes)} axes; expected one axis")
    overrides = [*GENERATED, *options.overrides]
    device = chosen_device(compose_config(overrides).device)
    print(conditions(options.rounds, options.clock, overrides))
    for axis in axes:
        values, points = AXES[axis]
        if options.values:
            values = tuple(int(value) for value in options.values.split(","))
        print_axis(axis, points(values, overrides), options.rounds, options.clock, device)


if __name__ == "__main__":
    main(sys.argv[1:])
