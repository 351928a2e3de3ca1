"""Does a long run stay as lean and as fast as it began? Memory and throughput over many steps of a tiny recipe.

Prints the slope of resident memory over the second half of the run, with its 95% interval, and the throughput of each
tenth as a share of the second tenth's. Each step is a whole one: two pretraining updates, one finetuning update, one
masking update with its hypergradient, the event log flushed, and a checkpoint every hundred.

    python benchmarks/soak.py --steps 10000
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from scipy import stats

from multilevel.configuration import build_recipe, compose_config
from multilevel.event_log import EventLog
from multilevel.problems import Callback, Checkpointing, Engine
from multilevel.train import new_engine

SETTINGS = (
    "data.limit=300 data.batch_size=8 model.width=16 model.heads=2 model.depth=1 model.decoder_width=8 "
    "model.decoder_heads=2 model.decoder_depth=1"
)
EVERY = 50  # steps between two looks
TENTHS = 10


class Watch(Callback):
    """Resident memory in MiB, and the time, every so many steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.memory: list[float] = []
        self.times: list[float] = []

    def on_step(self, engine: Engine) -> None:
        if engine.step % EVERY == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.steps.append(engine.step)
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            self.times.append(time.perf_counter())


def report(watch: Watch) -> str:
    half = len(watch.steps) // 2
    fit = stats.linregress(watch.steps[half:], watch.memory[half:])
    error = stats.t.ppf(0.975, len(watch.steps) - half - 2) * fit.stderr
    cuts = [round(place * (len(watch.times) - 1) / TENTHS) for place in range(TENTHS + 1)]
    speeds = [
        (watch.steps[end] - watch.steps[start]) / (watch.times[end] - watch.times[start])
        for start, end in pairwise(cuts)
    ]
    slope = f"{1024 * 1000 * fit.slope:+.1f} KiB a thousand steps (95% interval +- {1024 * 1000 * error:.1f})"
    shares = ", ".join(f"{speed / speeds[1]:.2f}" for speed in speeds)
    return "\n".join(
        [
            f"steps: {watch.steps[-1]:,}; {speeds[1]:.1f} steps a second in the second tenth",
            f"resident memory: {watch.memory[0]:.0f} MiB after {watch.steps[0]} steps, {watch.memory[half]:.0f} MiB "
            f"halfway, {watch.memory[-1]:.0f} MiB at the end; slope of the second half {slope}",
            f"throughput of each tenth, as a share of the second's: {shares}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    asked = parser.parse_args()
    if asked.steps < 2 * TENTHS * EVERY:
        parser.error(f"--steps: got {asked.steps}; expected at least {2 * TENTHS * EVERY}, two looks in each tenth")
    torch.set_num_threads(1)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        engine = new_engine(build_recipe(compose_config([*SETTINGS.split(), f"steps={asked.steps}"])))
        engine.callbacks += [EventLog(Path(folder) / "metrics.jsonl"), Checkpointing(Path(folder) / "checkpoint", 100)]
        engine.callbacks.append(watch)
        engine.run(asked.steps)
    print(report(watch))


if __name__ == "__main__":
    main()
