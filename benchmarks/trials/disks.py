"""Full and read-only disks, quotas and limits of the size of files: one line, and nothing lost or half written.

Disks are small file systems in memory, mounted where only this process sees them, which takes root. Without it, a full
disk is a limit of the size of files, and a read-only one a folder without permission to write.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from trials.base import Before, Named, command, contents, copied, kind
from trials.checkpoints import SETTINGS, whole
from trials.kills import differences, newest

_LIBC = ctypes.CDLL(None, use_errno=True)
NEW_NAMESPACE, PRIVATE, READ_ONLY, REMOUNT, DETACH = 0x20000, 1 << 18 | 1 << 14, 1, 32, 2
LARGE = 1 << 26

EXPORT = ["export", "run", "output=disk/new", "head=own", "references=false"]
PREDICT = ["predict", "export", "images", "output=disk/out.csv"]
MONITOR = ["monitor", "export", "images", "output=disk/out.json"]
SUGGEST = ["suggest", "export", "images", "output=disk/out.csv", "count=5"]
INSPECT = ["inspect", "export", "images", "output=disk/out.html", "good=a"]
SCORES = ["evaluate", "export", "data.path=images", "output=disk/out.json"]
EVALUATE, RESUME = ["evaluate", "disk/run"], ["train", "resume=disk/run"]
TRAIN = [*(setting for setting in SETTINGS if not setting.startswith("output=")), "output=disk/run"]
PROMOTE = ["promote", "export", "link=disk/current"]
OUTPUTS = ("out.csv", "out.json", "out.html", "evaluation.json")
DRAWN = {"monitor": ["out.png"], "suggest": ["out.png"], "inspect": ["out.json"]}  # next to the named file


def _mount(source: bytes | None, target: bytes, kind_: bytes | None, flags: int, options: bytes | None) -> bool:
    return _LIBC.mount(source, target, kind_, ctypes.c_ulong(flags), options) == 0


@cache
def mounts() -> bool:
    """Let this process mount what no other sees; returns whether it may."""
    return _LIBC.unshare(NEW_NAMESPACE) == 0 and _mount(None, b"/", None, PRIVATE, None)


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of some bytes at ``folder/disk``, or a folder if that cannot be mounted."""
    path = folder / "disk"
    path.mkdir()
    mounted = mounts() and _mount(b"none", os.fsencode(path), b"tmpfs", 0, f"size={size}".encode())
    try:
        yield path
    finally:
        if mounted:
            _LIBC.umount2(os.fsencode(path), DETACH)
        else:
            path.chmod(0o755)


def fill(path: Path) -> None:
    """Leave no byte of a disk."""
    with contextlib.suppress(OSError), (path / "filler").open("wb", buffering=0) as file:
        while mounts():
            file.write(bytes(4096))


def make_read_only(path: Path) -> None:
    if not (mounts() and _mount(b"none", os.fsencode(path), None, READ_ONLY | REMOUNT, None)):
        path.chmod(0o555)


def limit(size: int) -> Before:
    """Let no file become larger, but for what is printed: another process writes that."""

    def before(folder: Path) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if child:
            os.close(writer)
            while piece := os.read(reader, 65536):
                os.write(2, piece)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
        for number in (1, 2):
            os.dup2(writer, number)
        os.close(writer)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return before


def quota(folder: Path) -> None:
    """Let no file be created on the disk."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            on_disk = os.path.realpath(arguments[0]).startswith(os.path.realpath(folder / "disk"))
            if on_disk and arguments[2] & os.O_CREAT:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), arguments[0])

    sys.addaudithook(hook)


def prepared(folder: Path, place: Path, words: list[str], old: bool) -> None:
    """What a command reads, and outputs of earlier."""
    copied(folder, "images", "export", *(["run"] if words == EXPORT else []))
    if words in (EVALUATE, RESUME):
        shutil.copytree(whole() / "run", place / "run")
    if words == RESUME:  # a step is left to do
        (place / "run" / "summary.json").unlink()
        shutil.rmtree(place / "run" / "checkpoint" / "step-3")
    if words == PROMOTE:
        (place / "current").symlink_to(folder / "images")
    for word in words if old else []:
        name = word.removeprefix("output=disk/")
        if name in OUTPUTS:
            (place / name).write_text("old")


def attempt(
    words: list[str], folder: Path, size: int = LARGE, full: bool = False, read_only: bool = False,
    before: Before | None = None, statuses: tuple[int, ...] = (2,), old: bool = True,
) -> list[str]:  # fmt: skip
    with disk(folder, size) as place:
        prepared(folder, place, words, old)
        if full:
            fill(place)
        earlier = contents(folder)
        if read_only:
            make_read_only(place)
        if full and not mounts():
            before = limit(0)
        outcome = command(folder, *words, before=before)
        problems = outcome.problems(*statuses)
        later = contents(folder)
        if words[0] == "train":
            return problems + freed(folder, place, earlier, outcome.status)
        ignored = (".out", ".err")
        if outcome.status != 2:
            return problems + incomplete(place, words)
        changed = [name for name in {*earlier, *later} if earlier.get(name) != later.get(name) and name not in ignored]
        return problems + [f"{name} is lost, changed or left over" for name in changed]


def incomplete(place: Path, words: list[str]) -> list[str]:
    """What a command that had room has not written."""
    named = [word.removeprefix("output=disk/") for word in words if word.startswith("output=disk/")]
    missing = [name for name in [*named, *(DRAWN.get(words[0], []) if named else [])] if not (place / name).exists()]
    return [f"{name} is missing" for name in missing]


def freed(folder: Path, place: Path, earlier: dict[str, bytes], status: int) -> list[str]:
    """With room again, a run goes on from its newest checkpoint to the same bits."""
    if status == 0:
        return differences(place / "run", whole() / "run")
    later = contents(folder)
    saved = [name for name in earlier if name.startswith("disk/run/checkpoint/")]
    problems = [f"{name} is lost or changed" for name in saved if later.get(name) != earlier[name]]
    if newest(place / "run") is None:
        return problems
    elsewhere = folder / "room"
    shutil.copytree(place / "run", elsewhere / "run")
    problems += command(elsewhere, "train", "resume=run").problems(0)
    return problems or differences(elsewhere / "run", whole() / "run")


TITLE = "full disk, read-only, file-size limits"


@kind(TITLE)
def disks(generator: random.Random) -> Iterator[Named]:
    named = {
        "export": EXPORT, "predict": PREDICT, "monitor": MONITOR, "suggest": SUGGEST, "inspect": INSPECT,
        "evaluate an export": SCORES, "evaluate": EVALUATE,
    }  # fmt: skip
    for name, words in named.items():
        yield f"full disk: {name}", partial(attempt, words, full=True)
    yield "full disk: promote", partial(attempt, PROMOTE, full=True, statuses=(0, 2))
    for size in (8, 100, 250, 420):  # KiB; of a checkpoint 138
        size = 1024 * (size + generator.randrange(8))
        yield f"disk of {size} bytes: train", partial(attempt, TRAIN, size=size, statuses=(0, 2))
    for size in (12, 50):  # KiB; of an export 70
        size = 1024 * (size + generator.randrange(8))
        yield f"disk of {size} bytes: export", partial(attempt, EXPORT, size=size)
    yield "full disk: resume", partial(attempt, RESUME, full=True)
    for size in (100, 3_000, 30_000, 90_000):
        size += generator.randrange(size // 5)
        yield f"files of {size} bytes at most: train", partial(attempt, TRAIN, before=limit(size), statuses=(0, 2))
    for name, words, size in (
        ("export", EXPORT, 500), ("export", EXPORT, 20_000), ("predict", PREDICT, 1_000),
        ("monitor", MONITOR, 2_000), ("inspect", INSPECT, 9_000), ("evaluate", EVALUATE, 100),
    ):  # fmt: skip
        yield f"files of {size} bytes at most: {name}", partial(attempt, words, before=limit(size))
    for name, words in (("export", EXPORT), ("predict", PREDICT), ("resume", RESUME)):
        yield f"quota: {name}", partial(attempt, words, before=quota)
    for name in ("export", "predict", "monitor", "evaluate"):
        yield f"read-only: {name}", partial(attempt, named[name], read_only=True)
    yield "read-only: train", partial(attempt, TRAIN, read_only=True)
    yield "read-only: resume", partial(attempt, RESUME, read_only=True)
    elsewhere = ["export", "disk/run", "output=new", "head=own", "references=false"]
    yield "read-only run: export elsewhere", partial(from_read_only, "run", elsewhere)
    yield "read-only export: predict elsewhere", partial(from_read_only, "export", ["predict", "disk/export", "images"])


def from_read_only(name: str, words: list[str], folder: Path) -> list[str]:
    """A run or an export that can only be read is enough to read it."""
    copied(folder, "images", name)
    with disk(folder, LARGE) as place:
        shutil.move(folder / name, place / name)
        make_read_only(place)
        return command(folder, *words).problems(0)
