"""Runs that are killed at any moment, and resumed: every bit is that of a run that was not."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from trials.base import SCRATCH, TINY, Before, Named, command, contents, ended, finished, kind, start

LONG = [*TINY, "steps=6", "evaluate=false"]
SETTINGS = {
    "adam": [*LONG, "data.path=images"],
    "warm starts": [
        *LONG, "data.path=images", "solver=conjugate_gradient", "solver.warm_start=true", "solver.iterations=2",
    ],
    "unrolled": [*LONG, "data.path=images", "solver=unrolled", "levels.pretrain.optimizer=sgd"],
    "meta-learning": ["recipe=maml", "steps=6", "checkpoint.every=1", "evaluate=false"],
}  # fmt: skip
STATE = ("weights.safetensors", "state.safetensors", "state.json")
OPERATIONS = ("open", "os.", "shutil.")  # audit events


def at_operations(act: Callable[[int], object], after: str = "") -> Before:
    """Call ``act`` with the number of each operation on a file, counted from the renaming to ``after``."""

    def before(folder: Path) -> None:
        numbers, armed = itertools.count(), [not after]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "os.rename" and str(arguments[1]).endswith(after):
                armed[0] = True
            if armed[0] and event.startswith(OPERATIONS):
                act(next(numbers))

        sys.addaudithook(hook)

    return before


def signal_at(number: int, which: signal.Signals = signal.SIGKILL, after: str = "") -> Before:
    """Send a signal to the command before one of its operations on files."""
    return at_operations(lambda operation: os.kill(os.getpid(), which) if operation == number else None, after)


def counted(folder: Path, *arguments: str, after: str = "") -> tuple[int, float]:
    """Run a command; returns how many operations on files it makes, and its seconds."""
    shared, begun = mmap.mmap(-1, 8), time.monotonic()

    def act(number: int) -> None:
        shared[:] = (number + 1).to_bytes(8, "little")

    outcome = command(folder, *arguments, before=at_operations(act, after))
    assert outcome.status == 0, outcome.err
    return int.from_bytes(shared[:], "little"), time.monotonic() - begun


def newest(run: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = [path for path in run.glob("checkpoint/step-*") if path.name.removeprefix("step-").isdigit()]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log without times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def differences(run: Path, whole: Path) -> list[str]:
    """In what a run that ended differs from another one."""
    checkpoint, expected = newest(run), newest(whole)
    if checkpoint is None or expected is None or checkpoint.name != expected.name:
        return [f"the newest checkpoint is {checkpoint}"]
    problems = [
        f"{name} differs" for name in STATE if (checkpoint / name).read_bytes() != (expected / name).read_bytes()
    ]
    if log_of(run) != log_of(whole):
        problems.append("metrics.jsonl differs")
    if not (run / "summary.json").exists():
        return [*problems, "no summary.json"]
    summaries = [json.loads((path / "summary.json").read_text()) for path in (run, whole)]
    problems += [
        f"{name} differs in the summary"
        for name in ("levels", "evaluation")
        if summaries[0].get(name) != summaries[1].get(name)
    ]
    allowed = {*contents(whole), ".lock", *(f"checkpoint/{path.name}" for path in checkpoint.parent.iterdir())}
    # What a kill leaves half written has a hidden name of its own.
    left = [name for name in contents(run) if name not in allowed and not name.startswith(("checkpoint/step-", "."))]
    return [*problems, *(f"{name} is left over" for name in left)]


@cache
def whole(settings: str) -> tuple[Path, int, float]:
    """A run that nothing interrupts, the number of its operations on files, and its seconds."""
    folder = SCRATCH[0] / f"whole {settings}"
    shutil.copytree(finished() / "images", folder / "images")
    counts = counted(folder, "train", *SETTINGS[settings], "output=run")
    return folder, *counts


def started(folder: Path, settings: str) -> None:
    """Copy the images: the same as those of the whole run."""
    shutil.copytree(whole(settings)[0] / "images", folder / "images")


def resumed(folder: Path, *arguments: str) -> list[str]:
    """Resume a run that was killed; one without a checkpoint may be refused, and is started anew."""
    had = newest(folder / "run") is not None
    outcome = command(folder, "train", "resume=run")
    if had or outcome.status == 0:
        return outcome.problems(0)
    shutil.rmtree(folder / "run", ignore_errors=True)
    return outcome.problems(2) + command(folder, "train", *arguments, "output=run").problems(0)


def kill_training(settings: str, moments: list[tuple[str, float]], folder: Path) -> list[str]:
    base, operations, seconds = whole(settings)
    started(folder, settings)
    problems = []
    for number, (unit, share) in enumerate(moments):
        had = newest(folder / "run")
        again = ["resume=run"] if had is not None else [*SETTINGS[settings], "output=run"]
        if had is None:
            shutil.rmtree(folder / "run", ignore_errors=True)
        moment = share * 0.7**number  # less is left to do
        before = signal_at(int(moment * operations)) if unit == "operation" else None
        process = start(folder, "train", *again, before=before)
        if unit == "time":
            time.sleep(moment * seconds)
            os.kill(process, signal.SIGKILL)
        outcome = ended(process, folder)
        problems += outcome.problems(0, -signal.SIGKILL)
        if had is not None and not (folder / "run" / "checkpoint").joinpath(had.name).exists():
            later = newest(folder / "run")
            problems += ["a checkpoint was lost"] if later is None or step(later) < step(had) else []
    problems += resumed(folder, *SETTINGS[settings])
    return problems or differences(folder / "run", base / "run")


def step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


@kind("SIGKILL of training at random moments, resumed")
def training(generator: random.Random) -> Iterator[Named]:
    for number in range(39):
        settings = list(SETTINGS)[number % len(SETTINGS)]
        moments = [
            (generator.choice(["operation", "time"]), round(generator.random(), 3))
            for _ in range(generator.choice([1, 1, 2, 3]))
        ]
        text = ", then ".join(f"at {share} of its {unit}s" for unit, share in moments)
        yield f"{number}: {settings}, killed {text}", partial(kill_training, settings, moments)
