"""What compile=true saves in an outer iteration of the guided autoencoder, and what it takes to compile.

An iteration is 2 pretraining steps, 1 finetuning step and 1 mask step. All sides take turns in one process; each side's
first iteration compiles, its second is not counted. Seconds are of the processor, all threads together: other programs
on the machine change them less than they change the time that passes.

    OMP_NUM_THREADS=1 python benchmarks/compiled_steps.py
    python benchmarks/compiled_steps.py --rounds 9 --sides direct,both --precisions bf16 data=cifar10 data.path=DIR
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product

import torch
from guided_mae_step import plain_iteration, recipe_of

from multilevel.problems import Callback
from multilevel.train import new_engine

GENERATED = "data=planted data.image_size=32 data.channels=3 data.batch_size=128 data.flip=true data.crop_scale=0.6"


class PrintNotices(Callback):
    """What is not compiled."""

    def on_notice(self, engine, notice):
        print(notice)


def iteration(side: str, precision: str, compiled: bool, overrides: list[str]) -> Callable[[], None]:
    """One outer iteration of a side: plain (no hypergradient, never compiled), direct or both."""
    settings = [*overrides, f"precision={precision}", f"compile={str(compiled).lower()}"]
    recipe = recipe_of(settings, "both" if side == "plain" else side)
    if side == "plain":
        return plain_iteration(recipe)
    engine = new_engine(recipe)
    engine.callbacks.append(PrintNotices())
    return lambda: engine.run(1)


def seconds_of(iterate: Callable[[], None]) -> float:
    start = time.process_time()
    iterate()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted iterations of each side (default 5)")
    parser.add_argument("--sides", default="plain,direct,both", help="of plain, direct, both")
    parser.add_argument("--precisions", default="float32,bf16", help="of float32, bf16")
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="as for multilevel train")
    options = parser.parse_args()
    overrides = options.overrides or GENERATED.split()
    cases = [
        case
        for case in product(options.sides.split(","), options.precisions.split(","), (False, True))
        if case[0] != "plain" or not case[2]
    ]
    iterations = {case: iteration(*case, overrides) for case in cases}
    first = {case: seconds_of(iterate) for case, iterate in iterations.items()}
    for iterate in iterations.values():
        iterate()
    found: dict[tuple, list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case, iterate in iterations.items():
            found[case].append(seconds_of(iterate))
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds, {' '.join(overrides)}")
    for case in cases:
        side, precision, compiled = case
        line = f"{side:<7} {precision:<8} {'compiled' if compiled else '':<9} {statistics.median(found[case]):6.2f} s"
        if compiled:
            eager = found[side, precision, False]
            ratios = sorted(one / other for one, other in zip(found[case], eager, strict=True))
            line += f", {statistics.median(ratios):.2f}x what it takes otherwise ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            line += f"; the first iteration takes {first[case] - first[side, precision, False]:.0f} s more"
        print(line)


if __name__ == "__main__":
    main()
