"""Measures the savings of compile=true in an outer iteration of the guided autoencoder, and the cost of compilation.

An iteration is 2 pretraining steps, 1 finetuning step and 1 mask step. All sides take turns in one process; each side's
first iteration compiles, its second is not counted. Seconds are CPU seconds of all threads, which other programs affect
less; they exclude compilers in separate processes, and code compiled in an earlier run comes from its cache.

    OMP_NUM_THREADS=1 python benchmarks/compiled_steps.py
    python benchmarks/compiled_steps.py --rounds 9 --sides direct,both --precisions bf16 data=cifar10 data.path=DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product

from guided_mae_step import iteration, recipe_for
from side_by_side import Iterate, Spread, alternate, conditions, ratio, timed

from multilevel.problems import Callback
from multilevel.runs.training import new_engine

GENERATED = "data=planted data.image_size=32 data.channels=3 data.batch_size=128 data.flip=true data.crop_scale=0.6"


class PrintNotices(Callback):
    """What is not compiled."""

    def on_notice(self, engine, notice):
        print(notice)


def iteration_of(side: str, precision: str, compiled: bool, overrides: list[str]) -> Iterate:
    """One outer iteration of a side: plain (no hypergradient, never compiled), direct or both."""
    settings = [*overrides, f"precision={precision}", f"compile={str(compiled).lower()}"]
    recipe = recipe_for(side, settings, [])
    if side == "plain":
        return iteration(side, recipe)
    engine = new_engine(recipe)
    engine.callbacks.append(PrintNotices())
    return lambda: engine.run(1)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted iterations of each side (default 5)")
    parser.add_argument("--sides", default="plain,direct,both", help="of plain, direct, both")
    parser.add_argument("--precisions", default="float32,bf16", help="of float32, bf16")
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="as for multilevel train")
    options = parser.parse_intermixed_args(arguments)
    overrides = options.overrides or GENERATED.split()
    cases = [
        case
        for case in product(options.sides.split(","), options.precisions.split(","), (False, True))
        if case[0] != "plain" or not case[2]
    ]
    iterations = {case: iteration_of(*case, overrides) for case in cases}
    first = {case: timed(iterate, "cpu") for case, iterate in iterations.items()}
    seconds = alternate(iterations, options.rounds, "cpu")
    print(conditions(options.rounds, "cpu", overrides))
    for case in cases:
        side, precision, compiled = case
        spent = Spread.of(seconds[case]).median
        line = f"{side:<7} {precision:<8} {'compiled' if compiled else '':<9} {spent:6.2f} s"
        if compiled:
            eager = side, precision, False
            line += f", {ratio(seconds[case], seconds[eager]).text()} times the uncompiled seconds"
            line += f"; the first iteration takes {first[case] - first[eager]:.0f} s more"
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
