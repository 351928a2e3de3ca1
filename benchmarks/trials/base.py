"""Trials of the command line: what is tried, how a command is run, and what counts as bad."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image

SECONDS = 300  # of one command; it takes a few when nothing else runs
TINY = [
    "data=folder", "data.image_size=16", "data.patch_size=4", "data.batch_size=4", "data.near_copies=keep",
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "steps=4", "checkpoint.every=1", "evaluation.references=false",
    "evaluation.protocols=[knn]",
]  # fmt: skip

Run = Callable[[Path], list[str]]  # in an empty folder; returns problems
Before = Callable[[Path], object]
Named = tuple[str, Run]
SCRATCH: list[Path] = []  # the folder of ``finished``, set once
KINDS: dict[str, Callable[[random.Random], Iterator[Named]]] = {}


class TimedOutError(Exception):
    """A command has not ended in time, as under load."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status (negative: the signal), and what it printed."""

    status: int
    out: str
    err: str

    def problems(self, *statuses: int) -> list[str]:
        """What is bad about it: a traceback, or a status that is not one of these."""
        problems = (
            [f"traceback: {self.err.strip().splitlines()[-1]}"] if "Traceback (most recent call" in self.err else []
        )
        if self.status not in statuses and not problems:
            last = self.err.strip().splitlines()[-1:] or ["nothing printed"]
            problems.append(f"exit status {self.status}: {last[0]}")
        if self.status == 2 and not any(line.startswith("multilevel: ") for line in self.err.splitlines()):
            problems.append("exit status 2 without a line that says why")
        return problems


def kind(title: str) -> Callable[[Callable[[random.Random], Iterator[Named]]], None]:
    """Register a function that yields the trials of a kind, each with a name."""

    def register(trials: Callable[[random.Random], Iterator[Named]]) -> None:
        KINDS[title] = trials

    return register


@cache
def load_product() -> None:
    """Import all modules, so that a fork of this process begins at once."""
    import multilevel

    for module in pkgutil.walk_packages(multilevel.__path__, "multilevel.", onerror=lambda name: None):
        with suppress(ImportError):
            importlib.import_module(module.name)
    Image.init()
    gc.freeze()  # a collection in a fork copies no memory of what was imported


def start(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    before: Before | None = None,
    name: str = "",
) -> int:
    """Start a command in a fork of this process, with ``folder`` as its current one; returns the process.

    Args:
        before: called in the process with the folder, before the command, for example to set limits.
        name: distinguishes commands that run in one folder at the same time.
    """
    load_product()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, file in ((1, f".out{name}"), (2, f".err{name}")):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(environment or {})
        torch.set_num_threads(1)
        if before is not None:
            before(folder)
        encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
        sys.stdout = os.fdopen(1, "w", encoding=encoding, errors="strict", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)
        from multilevel.__main__ import main

        status = main(list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:  # whatever happens, only the first process goes on
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ended(process: int, folder: Path, seconds: float = SECONDS, name: str = "") -> Outcome:
    """Wait for a started command.

    Args:
        name: as it was started with.

    Raises:
        TimedOutError: it has not ended in time; it is then killed.
    """
    deadline = time.monotonic() + seconds
    while True:
        number, raw = os.waitpid(process, os.WNOHANG)
        if number:
            status = os.waitstatus_to_exitcode(raw)
            return Outcome(status, *(_text(folder / f"{file}{name}") for file in (".out", ".err")))
        if time.monotonic() > deadline:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise TimedOutError
        time.sleep(0.005)


def command(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, before: Before | None = None
) -> Outcome:
    """Run a command in ``folder`` to its end."""
    return ended(start(folder, *arguments, environment=environment, before=before), folder)


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path; of a link, where it leads to."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    read = {path: os.readlink(path).encode() if path.is_symlink() else path.read_bytes() for path in files}
    return {os.fsdecode(os.fsencode(path.relative_to(folder))): content for path, content in read.items()}


def write_images(root: Path, classes: Sequence[str] = ("a", "b"), count: int = 10, seed: int = 0) -> Path:
    """Folders of 24 x 24 colour images, which differ by class."""
    generator = torch.Generator().manual_seed(seed)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(
                60 * (label % 3), 60 * (label % 3) + 120, (24, 24, 3), generator=generator, dtype=torch.uint8
            )
            Image.fromarray(pixels.numpy()).save(root / name / f"{number:03}.png")
    return root


@cache
def finished() -> Path:
    """A folder with ``images``, a finished ``run`` and its ``export``, made once."""
    base = SCRATCH[0] / "base"
    write_images(base / "images")
    train = command(base, "train", *TINY, "data.path=images", "output=run")
    export = command(base, "export", "run", "output=export", "head=own", "references=false")
    assert train.status == export.status == 0, (train.err, export.err)
    return base


def copied(folder: Path, *names: str) -> None:
    """Copy some of ``images``, ``run`` and ``export`` into a trial's folder."""
    for name in names:
        shutil.copytree(finished() / name, folder / name)
