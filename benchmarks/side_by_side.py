"""What benchmarks share: sides that take turns in one process, ratios round by round, and memory."""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

Iterate = Callable[[], object]
Side = TypeVar("Side", bound=Hashable)
#: What times are taken with: cpu, with OMP_NUM_THREADS=1, where other work shares the cores.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of some numbers."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        return cls(statistics.median(numbers), min(numbers), max(numbers))

    def text(self, decimals: int = 2) -> str:
        """The median, and the range in brackets."""
        return f"{self.median:.{decimals}f} ({self.least:.{decimals}f} to {self.largest:.{decimals}f})"


def alternate(sides: Mapping[Side, Iterate], rounds: int, clock: str = "wall") -> dict[Side, list[float]]:
    """Seconds of each side's iterations, the sides taking turns; the first round warms up and does not count."""
    seconds: dict[Side, list[float]] = {side: [] for side in sides}
    for round_number in range(rounds + 1):
        for side, iterate in sides.items():
            spent = timed(iterate, clock)
            if round_number:
                seconds[side].append(spent)
    return seconds


def timed(iterate: Iterate, clock: str = "wall") -> float:
    """Seconds that one call takes, work on a GPU included."""
    now = CLOCKS[clock]
    start = now()
    iterate()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return now() - start


def conditions(rounds: int, clock: str, overrides: Sequence[str]) -> str:
    """How figures were taken, in one line."""
    return f"{torch.get_num_threads()} threads, {rounds} rounds, {clock} time, {' '.join(overrides)}"


def add_clock(parser: argparse.ArgumentParser) -> None:
    """The option --clock, one of ``CLOCKS``."""
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where other work shares the cores")


def ratio(ones: Sequence[float], others: Sequence[float]) -> Spread:
    """Of two sides' seconds, round by round."""
    return Spread.of([one / other for one, other in zip(ones, others, strict=True)])


def resident_growth(prepare: Callable[[], Iterate], iterations: int) -> float:
    """Largest resident size while iterating, less the resident size before ``prepare``, in MiB (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    iterate = prepare()
    for _ in range(iterations):
        iterate()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """A size of this process as the kernel keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def in_own_process(script: str, arguments: Sequence[str]) -> float:
    """The number that a benchmark prints last, run once more in a fresh process."""
    command = [sys.executable, script, *arguments]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
