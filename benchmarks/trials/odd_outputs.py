"""Outputs of ``multilevel predict`` and ``monitor`` that are no new file in a folder of one's own.

Devices and links are a trial's own, in its folder: a program that replaces its output would replace ``/dev/stdout``.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from trials.base import Named, contents, copied, ended, start

HEADER = "file,label,probability,error,"
NULL, FULL = (1, 3), (1, 7)  # device numbers
NOBODY = 65534
Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Odd:
    """An output, what is there before, and what must be right after."""

    name: str
    output: str
    prepare: Prepare = lambda folder: None
    program: str = "predict"
    refused: bool = False
    new: tuple[str, ...] = ()  # files that the command makes or writes
    target: str | None = None  # the file that has the predictions afterwards; - is standard output
    as_nobody: bool = False
    stays: Callable[[Path], bool] = field(default=lambda folder: True)


def _device(numbers: tuple[int, int]) -> Prepare:
    return lambda folder: os.mknod(folder / "device", stat.S_IFCHR | 0o666, os.makedev(*numbers))


def _is_device(folder: Path) -> bool:
    return stat.S_ISCHR(os.stat(folder / "device").st_mode)


def _link(target: str, name: str = "link.csv") -> Prepare:
    return lambda folder: (folder / name).symlink_to(target)


def _is_link(folder: Path) -> bool:
    return (folder / "link.csv").is_symlink()


def _old_and_link(folder: Path) -> None:
    (folder / "old.csv").write_text("old")
    _link("old.csv")(folder)


def _hard_link(folder: Path) -> None:
    (folder / "old.csv").write_text("old")
    os.link(folder / "old.csv", folder / "other.csv")


def _hard_link_of_an_input(folder: Path) -> None:
    os.link(folder / "images" / "a" / "000.png", folder / "p.csv")


def _locked_folder(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o555)
    folder.chmod(0o777)


def _locked_file(folder: Path) -> None:
    _locked_folder(folder)
    (folder / "locked" / "p.csv").write_text("mine")


def _picture(name: str) -> Prepare:
    return lambda folder: Image.new("RGB", (9, 9), "red").save(folder / name)


def _is_hard_link(folder: Path) -> bool:
    return os.stat(folder / "old.csv").st_ino == os.stat(folder / "other.csv").st_ino


OUTPUTS = (
    Odd("the null device", "device", _device(NULL), stays=_is_device),
    Odd("the full device", "device", _device(FULL), refused=True, stays=_is_device),
    Odd("a link to a file", "link.csv", _old_and_link, new=("old.csv",), target="old.csv", stays=_is_link),
    Odd("a link to no file", "link.csv", _link("fresh.csv"), new=("fresh.csv",), target="fresh.csv", stays=_is_link),
    Odd("a link in a circle", "link.csv", _link("link.csv"), refused=True, stays=_is_link),
    Odd("a link to a folder", "link.csv", _link("images"), refused=True, stays=_is_link),
    Odd("a folder", "images", refused=True),
    Odd("a hard link", "old.csv", _hard_link, new=("old.csv", "other.csv"), target="old.csv", stays=_is_hard_link),
    Odd("standard output by a dash", "-", target="-"),
    Odd("standard output by a link", "link.csv", _link("/proc/self/fd/1"), target="-", stays=_is_link),
    Odd("standard output by its number", "/dev/fd/1", target="-"),
    Odd("an input", "images/a/000.png", refused=True),
    Odd("a link to an input", "link.csv", _link("images/a/000.png"), refused=True),
    Odd("a hard link of an input", "p.csv", _hard_link_of_an_input, refused=True),
    Odd("a new file in the export", "export/p.csv", refused=True),
    Odd("a file of the export", "export/config.json", refused=True),
    Odd("a link to the export", "link.csv/README.md", _link("export"), refused=True),
    Odd("a missing folder", "new/deep/p.csv", new=("new/deep/p.csv",), target="new/deep/p.csv"),
    Odd("a read-only folder", "locked/p.csv", _locked_folder, refused=True, as_nobody=True),
    Odd("a file of another user", "locked/p.csv", _locked_file, refused=True, as_nobody=True),
    Odd("a name that is too long", "n" * 300 + ".csv", refused=True),
    Odd("a system's folder", "/proc/p.csv", refused=True),
    Odd("the null device", "device", _device(NULL), program="monitor", stays=_is_device),
    Odd("a link", "link.csv", _old_and_link, program="monitor", new=("old.csv", "link.png", "old.png"), stays=_is_link),
    Odd("an input's name with .json", "images/a/000.json", program="monitor", refused=True),
    Odd("beside a picture of the user's", "mine.json", _picture("mine.png"), program="monitor", refused=True),
    Odd("in the export", "export/m.json", program="monitor", refused=True),
    Odd("standard output by a dash", "-", program="monitor"),
)


def trials() -> Iterator[Named]:
    for odd in OUTPUTS:
        yield f"{odd.program}: output is {odd.name}", _run(odd)
    yield "predict: output is a pipe", _pipe


def as_nobody(folder: Path) -> None:
    """Give up the rights of the administrator, who may write everywhere."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def files(folder: Path) -> dict[str, bytes]:
    """The contents without what the command printed."""
    return {name: content for name, content in contents(folder).items() if not name.startswith((".out", ".err"))}


def _run(odd: Odd) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        copied(folder, "images", "export")
        try:
            odd.prepare(folder)
        except PermissionError:  # only an administrator makes devices
            return []
        before = files(folder)
        words = (odd.program, "export", "images", f"output={odd.output}")
        outcome = ended(start(folder, *words, before=as_nobody if odd.as_nobody else None), folder)
        good = (2,) if odd.refused else (0,) if odd.program == "predict" else (0, 3, 4)
        problems, after = outcome.problems(*good), files(folder)
        lost = [name for name in before if name not in odd.new and after.get(name) != before[name]]
        problems += [f"{name} is lost or changed" for name in lost]
        problems += [f"{name} is left" for name in after if name not in before and name not in odd.new]
        if not odd.stays(folder):
            problems.append("the output was replaced")
        if odd.target is not None:
            text = outcome.out if odd.target == "-" else after.get(odd.target, b"").decode()
            problems += [] if text.startswith(HEADER) and text.count("\n") == 21 else ["the predictions are not there"]
        if odd.program == "monitor" and odd.output == "-":
            json.loads(outcome.out)
        return problems

    return run


def _pipe(folder: Path) -> list[str]:
    copied(folder, "images", "export")
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    outcome = ended(start(folder, "predict", "export", "images", "output=pipe"), folder)
    text = os.read(reader, 1 << 16).decode()
    os.close(reader)
    problems = outcome.problems(0)
    if not stat.S_ISFIFO(os.stat(folder / "pipe").st_mode):
        problems.append("the output was replaced")
    return problems if text.startswith(HEADER) else [*problems, "the predictions are not there"]
