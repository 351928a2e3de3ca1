"""The files that a command writes: one that the command line names, and others next to it."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from PIL import Image

from multilevel.solvers import SettingError
from multilevel.solvers.files import STANDARD, check_writable, inodes, is_regular, parse_json, stream_of, write_together

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell starts that a spreadsheet computes
DRAWN = "Matplotlib"  # how the software that this project's pictures name begins
REPORT = {"verdict", "export", "folder"}  # what the numbers of an inspection report have


@dataclass(frozen=True)
class Outputs:
    """The files that a command writes, all or none.

    Attributes:
        typed: the value of the setting ``output``.
        paths: the named file and those next to it. A device, a pipe or standard output has none next to it.
    """

    typed: str
    paths: list[Path]

    @classmethod
    def of(
        cls, output: str, inputs: Iterable[Path] = (), exports: Sequence[Path] = (), suffixes: Sequence[str] = ()
    ) -> Outputs:
        """Check, before any work, that the files can be written.

        Args:
            output: the file to write; ``-`` is standard output.
            inputs: files that the command reads.
            exports: exported folders that it reads; nothing is written into them.
            suffixes: those of other files that are written next to it.

        Raises:
            SettingError: a file cannot be written, is an input by whatever name, is in an export, or is next to the
                named one and not by this command.
        """
        path = Path(output)
        others = [path.with_suffix(suffix) for suffix in suffixes] if is_file(output, path) else []
        for target in [path, *others] if is_file(output, path) else []:
            inside = any(target.resolve().is_relative_to(export.resolve()) for export in exports)
            _require(output, not inside, "a file outside the export, whose files the command reads")
        existing = [target for target in (path, *others) if target.exists() and is_file(output, target)]
        known = inodes(chain(inputs, *(export.iterdir() for export in exports))) if existing else set()
        for target in existing:
            taken = bool(inodes([target]) & known)
            _require(output, not taken, f"another name: {target}, one of the inputs, would be overwritten")
        for target in others:
            free = not target.exists() or is_of_this_program(target)
            _require(output, free, f"another name: {target}, which is not by this command, would be overwritten")
        try:
            for target in (path, *others):
                check_writable(target)
        except OSError as error:
            raise SettingError("output", output, f"a file that can be written ({error.strerror})") from error
        return cls(output, [path, *others])

    @property
    def standard(self) -> bool:
        """Whether standard output gets the contents, so that nothing else may be printed there."""
        return stream_of(self.typed) == 1

    def write(self, *contents: str | bytes) -> None:
        """Write the named file and those next to it, completely or not at all.

        Raises:
            SettingError: they cannot be written.
        """
        try:
            write_together(dict(zip(self.paths, contents, strict=False)))
        except BrokenPipeError:  # nothing reads standard output any more
            raise
        except OSError as error:
            raise SettingError("output", self.typed, f"a file that can be written ({error.strerror})") from error

    def print(self, *lines: str) -> None:
        """Print lines; to standard error if standard output gets the contents."""
        print(*lines, sep="\n", file=sys.stderr if self.standard else sys.stdout)

    def print_paths(self) -> None:
        """Print where the files are."""
        if not self.standard:
            self.print(*map(str, self.paths))


def csv_text(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula: with an apostrophe in front if it begins like one.

    >>> [csv_text(text) for text in ("=1+1", "-0.5", "傷.png")]
    ["'=1+1", '-0.5', '傷.png']
    """
    if not text.startswith(FORMULA):
        return text
    with suppress(ValueError):
        float(text)
        return text
    return f"'{text}"


def csv_line(cells: Iterable[object], end: str = "\n") -> str:
    """A line of a CSV file. A cell with a line break of any kind is quoted; the csv module quotes only the kind that
    ends its lines.

    >>> csv_line(["a\\rb", 1])
    '"a\\rb",1\\n'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + end


def is_file(output: str, path: Path) -> bool:
    """Whether an output is a regular file, or will be one.

    Raises:
        SettingError: its name is too long, or its links lead in a circle.
    """
    try:
        return output != STANDARD and is_regular(path)
    except OSError as error:
        raise SettingError("output", output, f"a file that can be written ({error.strerror})") from error


def is_of_this_program(path: Path) -> bool:
    """Whether a file looks like a picture or the numbers that this program has written before."""
    with suppress(Exception):  # a broken file is not ours
        if path.suffix == ".png":
            with Image.open(path, formats=["PNG"]) as picture:
                return str(picture.info.get("Software", "")).startswith(DRAWN)
        return parse_json(path.read_text(encoding="utf-8")).keys() >= REPORT
    return False


def _require(output: str, fits: bool, expected: str) -> None:
    if not fits:
        raise SettingError("output", output, expected)
