"""What gives a hypergradient of the guided autoencoder more signal for the same time: a larger held-out batch, an
average over updates, or a baseline for each image of the choice of patches?

With the masking network held at one point of training, the hypergradients of successive steps are split into signal and
noise (see ``multilevel.problems.Reliability``). Each row has their ratio |mu|^2 / E|h - mu|^2 for one update, the
seconds of a training step, and the ratio for a second of training: an update that is twice as long must have twice the
ratio to pay, since averaging two updates doubles it. Rows already in the output are not measured again.

    python benchmarks/more_signal.py --data planted --output docs/results/signal_planted.jsonl
    python benchmarks/more_signal.py --data cifar10 --path DIR --output docs/results/signal_cifar10.jsonl
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hypergradient_worth import POINTS, engine_of
from kept_rows import completed
from torch import Tensor

from multilevel.problems import Engine
from multilevel.problems.hypergradient_noise import Halves, Reliability, decompose
from multilevel.problems.reliability import samples

STEPS = 96
BASE = "mask.policy=sampled paths=direct solver=identity"
CHOICE = f"{BASE} mask.gradient=choice"
#: Settings, and the number of updates to average over.
ARMS = {
    "held-out batch of 64": (BASE, 1),
    "held-out batch of 128": (f"{BASE} levels.mask.accumulate=2", 1),
    "held-out batch of 256": (f"{BASE} levels.mask.accumulate=4", 1),
    "held-out batch of 512": (f"{BASE} levels.mask.accumulate=8", 1),
    "mean of 2 updates": (BASE, 2),
    "mean of 4 updates": (BASE, 4),
    "mean of 8 updates": (BASE, 8),
    "choice, baseline over the batch": (CHOICE, 1),
    "choice, two masks for each image": (f"{CHOICE} mask.draws=2", 1),
    "choice, four masks for each image": (f"{CHOICE} mask.draws=4", 1),
}


def measure(engine: Engine, average: int) -> Reliability:
    """The signal in means over ``average`` successive hypergradients."""
    taken = list(samples(engine, STEPS, partial(engine.solve_hypergradient, engine.graph.top)))
    groups = [taken[start : start + average] for start in range(0, STEPS, average)]
    whole, first, second = (variance / average for variance in taken[0].variances)
    halves = [
        Halves.of(mean([each.first for each in group]), mean([each.second for each in group]), (whole, first, second))
        for group in groups
    ]
    return decompose([mean([each.whole for each in group]) for group in groups], halves)


def mean(vectors: list[Tensor]) -> Tensor:
    return torch.stack(vectors).double().mean(0)


def row_of(data: str, arm: str, seed: int, path: str) -> dict[str, Any]:
    point, (settings, average) = POINTS[data], ARMS[arm]
    engine = engine_of(point, seed, f"{path} {settings}")
    seconds = []
    for _ in range(point.step):
        start = time.process_time()
        engine.run(1)
        seconds.append(time.process_time() - start)
    return {
        "arm": arm,
        "seed": seed,
        "seconds": round(average * median(seconds), 4),
        "reliability": measure(engine, average).figures(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The ratio of signal to noise of every seed, and its median for a second of training."""
    titles = ("held-out batch, average or baseline", "signal / noise of an update", "CPU seconds", "for a second")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for arm in [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]:
        own = [row for row in rows if row["arm"] == arm]
        shares = [row["reliability"]["signal"]["value"] for row in own]
        ratios = [share / (1 - share) for share in shares]
        seconds = median(row["seconds"] for row in own)
        cells = [" ".join(f"{ratio:+.3f}" for ratio in ratios), f"{seconds:.2f}", f"{median(ratios) / seconds:+.3f}"]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("planted", "cifar10"), required=True)
    parser.add_argument("--path", help="folder of the images, for cifar10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--print", action="store_true", help="only print the rows of the output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = f"data.path={arguments.path}" if arguments.path else ""
    tasks = [] if arguments.print else [(arm, seed) for seed in range(arguments.seeds) for arm in ARMS]
    rows = completed(
        arguments.output,
        tasks,
        lambda row: (row["arm"], row["seed"]),
        lambda task: row_of(arguments.data, *task, path),
    )
    print(table(rows))


if __name__ == "__main__":
    main()
