"""Odd names, odd outputs and damaged exports of ``multilevel predict`` and ``monitor``."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from trials import damaged_exports, odd_outputs
from trials.base import Named, command, contents, copied, kind

FORMULA = ("=", "+", "-", "@", "\t", "\r")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
NAMES = {
    "Latin-1": b"caf\xe9.png",
    "Shift JIS": "傷あり.png".encode("shift_jis"),
    "a surrogate as UTF-8": b"\xed\xa0\x80.png",
    "a line break": b"a\nb.png",
    "a carriage return": b"a\rb.png",
    "escape sequences": b"\x1b]0;title\x07\x1b[2J.png",
    "a C1 control": "\x9b2J.png".encode(),
    "a formula with =": b"=1+1.png",
    "a formula with +": b"+1.png",
    "a formula with -": b"-a.png",
    "a formula with @": b"@sum(a1).png",
    "a formula after a tab": b"\t=1.png",
    "255 bytes": b"n" * 251 + b".png",
    "quotes and commas": b'a,"b";c.png',
}
MONITORED = ("Latin-1", "Shift JIS", "escape sequences", "a C1 control", "a line break")
CLASSES: dict[str, tuple[str, str]] = {
    "Cyrillic": ("кошка", "собака"),
    "Japanese": ("良品", "傷"),
    "escape sequences": ("\x1b[2J\x1b]0;x\x07", "ok"),
    "formulas": ("=cmd|'/c calc'!A1", "+1+1"),
    "line breaks": ("a\nb", "c\r\nd"),
    "a surrogate": ("\ud800", "ok"),
}
ASCII = {"PYTHONIOENCODING": "ascii"}


@kind("predict and monitor: names, outputs, mutated exports")
def trials(random: random.Random) -> Iterator[Named]:
    for what, name in NAMES.items():
        yield f"predict: a file name of {what}", _predict_named(name)
    for what in MONITORED:
        yield f"monitor: a file name of {what}", _monitor_named(NAMES[what])
    for what in CLASSES:
        yield f"predict to an ASCII terminal: class names with {what}", _class_names("predict", what, "-")
    for what in ("Cyrillic", "escape sequences", "a surrogate"):
        yield f"monitor on an ASCII terminal: class names with {what}", _class_names("monitor", what, "m.json")
    yield from odd_outputs.trials()
    yield from damaged_exports.trials()


def as_text(name: bytes) -> str:
    """What a file name is in a text: bytes that are not UTF-8 are escaped."""
    return name.decode("utf-8", "backslashreplace")


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of a CSV."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def bad_cells(text: str) -> list[str]:
    """The cells that a spreadsheet would compute."""
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    return [f"a cell is a formula: {cell!r}" for cell in cells if cell.startswith(FORMULA) and not _number(cell)]


def bad_screen(text: str) -> list[str]:
    """Control characters that a terminal would obey."""
    return [f"control character {CONTROL.search(text)[0]!r} on the screen"] if CONTROL.search(text) else []  # type: ignore[index]


def _number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", cell) is not None


def _predict_named(name: bytes) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        copied(folder, "images", "export")
        (folder / os.fsdecode(name)).write_bytes((folder / "images" / "a" / "000.png").read_bytes())
        before = contents(folder)
        outcome = command(folder, "predict", "export", f"./{os.fsdecode(name)}", "images", "output=p.csv")
        problems = outcome.problems(0) + bad_screen(outcome.out + outcome.err)
        if not (folder / "p.csv").exists():
            return [*problems, "no predictions"]
        text = (folder / "p.csv").read_bytes().decode()
        problems += bad_cells(text) + _changed(before, folder)
        rows = rows_of(text)
        files = [row["file"] for row in rows]
        same = [row for row in rows if row["file"] == "images/a/000.png"]
        own = [row for row in rows if row["file"].removeprefix("'") == as_text(name)]
        if len(rows) != 21 or len(same) != 1 or len(own) != 1:
            return [*problems, f"no row of its own: {files[0]!r}, {len(rows)} rows"]
        if own[0]["label"] != same[0]["label"] or own[0]["probability"] != same[0]["probability"]:
            problems.append("another prediction than that of the same picture")
        return problems

    return run


def _monitor_named(name: bytes) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        copied(folder, "images", "export")
        Image.effect_noise((24, 24), 255).convert("RGB").save(folder / "noise.png")
        (folder / "noise.png").rename(folder / "images" / os.fsdecode(name))
        before = contents(folder)
        outcome = command(folder, "monitor", "export", "images", "output=m.json")
        problems = outcome.problems(0, 3, 4) + bad_screen(outcome.out + outcome.err)
        if not (folder / "m.json").exists():
            return [*problems, "no report"]
        report = json.loads((folder / "m.json").read_bytes().decode())
        names = [image["file"] for image in report["most_unusual"]]
        if report["images"] != 21 or f"images/{as_text(name)}" not in names:
            problems.append(f"{report['images']} images, and the odd one is not among {names[:2]}")
        return problems + _changed(before, folder)

    return run


def _class_names(program: str, what: str, output: str) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        copied(folder, "images", "export")
        path, names = folder / "export" / "config.json", CLASSES[what]
        config = json.loads(path.read_text())
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
        path.write_text(json.dumps(config))
        (folder / "export" / "inspection.json").unlink(missing_ok=True)  # it names the old classes
        outcome = command(folder, program, "export", "images", f"output={output}", environment=ASCII)
        problems = outcome.problems(0, *((3, 4) if program == "monitor" else ()))
        problems += bad_screen(outcome.err) + bad_screen("" if output == "-" else outcome.out)
        if program == "monitor":
            return problems if (folder / "m.json").exists() else [*problems, "no report"]
        rows = rows_of(outcome.out)
        labels = {row["label"] for row in rows}
        if len(rows) != 20 or not labels or "" in labels:
            problems.append(f"{len(rows)} rows of 20, with labels {sorted(labels)}")
        return problems + bad_cells(outcome.out)

    return run


def _changed(before: dict[str, bytes], folder: Path) -> list[str]:
    after = contents(folder)
    return [f"{name} is lost or changed" for name, content in before.items() if after.get(name) != content]
