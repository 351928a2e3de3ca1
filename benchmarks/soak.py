"""Does a long run stay as lean and as fast as it began? Memory and throughput over many steps of a tiny recipe.

Prints the slopes of memory over the second half of the run, with their 95% intervals, and the throughput of each tenth
as a share of the second tenth's. Memory is what is resident, what of it is allocated (by glibc's malloc: tensors, and
all that is not a small Python object) and the number of blocks of small Python objects: where the latter two are flat,
nothing is being kept, and what is resident grows by pages of the heap that had not been touched before. Each step is a
whole one: two pretraining updates, one finetuning update, one masking update with its hypergradient, the event log
flushed, and a checkpoint every hundred.

    python benchmarks/soak.py --steps 10000
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Callback, Checkpointing, Engine
from multilevel.runs.event_log import EventLog
from multilevel.runs.training import new_engine

SETTINGS = (
    "data.limit=300 data.batch_size=8 model.width=16 model.heads=2 model.depth=1 model.decoder_width=8 "
    "model.decoder_heads=2 model.decoder_depth=1"
)
EVERY = 50  # steps between two looks
TENTHS = 10


class HeapUse(ctypes.Structure):
    """glibc's ``struct mallinfo2``, see mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    )


def heap_use() -> int:
    """Bytes that malloc has given out and not got back."""
    mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo.restype = HeapUse
    return int(mallinfo().uordblks)


class Watch(Callback):
    """Looks every so many steps: the step, the time, resident and allocated KiB, blocks of Python objects."""

    def __init__(self, steps: int) -> None:
        self.looks = np.zeros((steps // EVERY, 5))  # made at once: what grew with the run would be seen in it

    def on_step(self, engine: Engine) -> None:
        if engine.step % EVERY == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident, allocated = pages * os.sysconf("SC_PAGE_SIZE") / 2**10, heap_use() / 2**10
            look = engine.step, time.perf_counter(), resident, allocated, sys.getallocatedblocks()
            self.looks[engine.step // EVERY - 1] = look


def slope(steps: np.ndarray, values: np.ndarray, unit: str) -> str:
    """Of the second half."""
    half = len(steps) // 2
    fit = stats.linregress(steps[half:], values[half:])
    error = stats.t.ppf(0.975, len(steps) - half - 2) * fit.stderr
    return f"{1000 * fit.slope:+.1f} {unit} a thousand steps (95% interval +- {1000 * error:.1f})"


def report(looks: np.ndarray) -> str:
    steps, times, resident, allocated, blocks = looks.T
    cuts = [round(place * (len(looks) - 1) / TENTHS) for place in range(TENTHS + 1)]
    speeds = [(steps[end] - steps[start]) / (times[end] - times[start]) for start, end in pairwise(cuts)]
    first, middle, last = (resident[place] for place in (0, len(looks) // 2, -1))
    shares = ", ".join(f"{speed / speeds[1]:.2f}" for speed in speeds)
    return "\n".join(
        [
            f"steps: {steps[-1]:,.0f}; {speeds[1]:.1f} steps a second in the second tenth",
            f"resident memory: {first / 2**10:.0f} MiB after {steps[0]:.0f} steps, {middle / 2**10:.0f} MiB halfway, "
            f"{last / 2**10:.0f} MiB at the end; slope of the second half {slope(steps, resident, 'KiB')}",
            f"allocated of it: {slope(steps, allocated, 'KiB')}",
            f"blocks of Python objects: {blocks[-1]:,.0f}; {slope(steps, blocks, 'blocks')}",
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
    watch = Watch(asked.steps)
    with tempfile.TemporaryDirectory() as folder:
        engine = new_engine(build_recipe(compose_config([*SETTINGS.split(), f"steps={asked.steps}"])))
        engine.callbacks += [EventLog(Path(folder) / "metrics.jsonl"), Checkpointing(Path(folder) / "checkpoint", 100)]
        engine.callbacks.append(watch)
        engine.run(asked.steps)
    print(report(watch.looks))


if __name__ == "__main__":
    main()
