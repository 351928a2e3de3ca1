"""Parquet tables: orders of classes, columns, nulls, nested and empty ones, paths in cells, names of files."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trials.base import TINY, Named, command

KINDS = ("cat", "dog")
COLOURS = {"cat": (200, 30, 30), "dog": (30, 30, 200), "eel": (30, 200, 30)}
ROWS = [KINDS[row % 2] for row in range(24)]
VALID, REFUSED, EITHER = "valid", "refused", "either"
SETTINGS = [*TINY, "evaluate=false", "steps=1", "output=run"]
Build = Callable[[Path], object]


def trials(random: random.Random) -> Iterator[Named]:
    for name, (expected, build) in TABLES.items():
        yield f"table: {name}", _run(expected, build, "set")
    for folder, sibling in SIBLINGS.items():
        yield f"table: in the folder {folder!r}", _sibling(folder, sibling)


def cell(kind: str, row: int = 0) -> dict[str, Any]:
    """A picture of a class, which differs by row."""
    buffer = io.BytesIO()
    colour = tuple(min(255, value + row % 50) for value in COLOURS[kind])
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")  # type: ignore[arg-type]
    return {"bytes": buffer.getvalue(), "path": None}


def cells(kinds: Sequence[str]) -> list[dict[str, Any]]:
    return [cell(kind, row) for row, kind in enumerate(kinds)]


def write(path: Path, columns: dict[str, Any], names: Sequence[str] | None = None, typed: bool = True) -> None:
    """Write a table whose labels, given as texts, are class labels with these names, or stay texts.

    Args:
        typed: whether the column of images says so; `datasets` then puts the contents of files in place of their paths.
    """
    import datasets

    datasets.disable_progress_bars()
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns)
    if typed and isinstance(next(iter(columns.get("image", [])), None), dict):
        table = table.cast_column("image", datasets.Image())
    if names is not None:
        numbers = [names.index(kind) for kind in columns["label"]]
        classes = datasets.ClassLabel(names=list(names))
        table = table.remove_columns("label").add_column("label", numbers).cast_column("label", classes)
    table.to_parquet(str(path))


def simple(label: Sequence[Any] = ROWS, name: str = "label", file: str = "train.parquet", **more: Any) -> Build:
    return lambda root: write(root / file, {"image": cells(ROWS), name: list(label), **more})


def splits(train: Sequence[str] | None, test: Sequence[str] | None, file: str = "test.parquet") -> Build:
    def build(root: Path) -> None:
        write(root / "train.parquet", {"image": cells(ROWS), "label": ROWS}, train)
        write(root / file, {"image": cells(ROWS[:9]), "label": ROWS[:9]}, test)

    return build


def files(*orders: Sequence[str] | None) -> Build:
    def build(root: Path) -> None:
        for number, names in enumerate(orders):
            rows = ROWS if names is None or "eel" not in names else [*ROWS[:20], "eel", "eel", "eel", "eel"]
            file = f"train-{number:05}-of-{len(orders):05}.parquet"
            write(root / file, {"image": cells(rows), "label": rows}, names)

    return build


def images(values: Callable[[Path], Sequence[Any]]) -> Build:
    def build(root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for row, kind in enumerate(ROWS):
            (root / f"{row}.png").write_bytes(cell(kind, row)["bytes"])
        (root.parent / "outside.png").write_bytes(cell("cat")["bytes"])
        write(root / "train.parquet", {"image": values(root), "label": ROWS}, KINDS, typed=False)

    return build


def first(value: Any) -> Callable[[Path], Sequence[Any]]:
    return lambda root: [value, *cells(ROWS)[1:]]


def raw(content: bytes, name: str = "train.parquet") -> Build:
    def build(root: Path) -> None:
        root.mkdir()
        (root / name).write_bytes(content)

    return build


def cut(share: float) -> Build:
    def build(root: Path) -> None:
        simple()(root)
        whole = (root / "train.parquet").read_bytes()
        (root / "train.parquet").write_bytes(whole[: int(share * len(whole))])

    return build


def paths(*names: str) -> Callable[[Path], Sequence[Any]]:
    return lambda root: [{"bytes": None, "path": names[row] if row < len(names) else f"{row}.png"} for row in range(24)]


TABLES: dict[str, tuple[str, Build]] = {
    "classes in one order": (VALID, splits(KINDS, KINDS)),
    "test classes in another order": (VALID, splits(KINDS, KINDS[::-1])),
    "training classes in reverse": (VALID, splits(KINDS[::-1], KINDS)),
    "texts in training, classes in test": (VALID, splits(None, KINDS[::-1])),
    "classes in training, texts in test": (VALID, splits(KINDS[::-1], None)),
    "texts in both": (VALID, splits(None, None)),
    "a class more in test": (EITHER, splits(KINDS, ("ant", "dog", "cat"))),
    "validation.parquet in another order": (VALID, splits(KINDS, KINDS[::-1], "validation.parquet")),
    "two files in other orders": (VALID, files(KINDS, KINDS[::-1])),
    "three files in other orders": (VALID, files(KINDS, KINDS[::-1], KINDS)),
    "a file of texts and one of classes": (VALID, files(None, KINDS[::-1])),
    "a file with a class more": (VALID, files(KINDS, ("eel", "dog", "cat"))),
    **{f"a column {name}": (VALID, simple(name=name)) for name in ("labels", "class", "category", "Label", "target")},
    "a column of another name": (EITHER, simple(name="y")),
    "numbers as labels": (EITHER, simple([row % 2 for row in range(24)])),
    "large numbers as labels": (EITHER, simple([10**12 * (row % 2) for row in range(24)])),
    "negative numbers as labels": (EITHER, simple([row % 2 - 1 for row in range(24)])),
    "fractions as labels": (EITHER, simple([row % 2 / 3 for row in range(24)])),
    "true and false as labels": (EITHER, simple([row % 2 == 0 for row in range(24)])),
    "a text for each row as labels": (REFUSED, simple([f"text {row}" for row in range(24)])),
    "one class": (EITHER, simple(["cat"] * 24)),
    "a label that is null": (EITHER, simple([None, *ROWS[1:]])),
    "labels that are all null": (EITHER, simple([None] * 24)),
    "labels that are empty texts": (EITHER, simple([""] * 12 + ["dog"] * 12)),
    "lists as labels": (EITHER, simple([[kind] for kind in ROWS])),
    "nested labels": (EITHER, simple([{"a": {"b": kind}} for kind in ROWS])),
    "paths of files": (VALID, images(paths())),
    "a path out of the folder": (REFUSED, images(paths("../outside.png"))),
    "an absolute path": (REFUSED, images(paths("/proc/self/environ"))),
    "a path of a device": (REFUSED, images(paths("/dev/null"))),
    "a path of a missing file": (REFUSED, images(paths("missing.png"))),
    "a path with a null byte": (REFUSED, images(paths("a\0b.png"))),
    "a null image": (EITHER, images(first(None))),
    "empty bytes": (REFUSED, images(first({"bytes": b"", "path": None}))),
    "bytes of no image": (REFUSED, images(first({"bytes": b"no image", "path": None}))),
    "lists of images": (
        EITHER,
        lambda root: write(root / "train.parquet", {"image": [[c] for c in cells(ROWS)], "label": ROWS}),
    ),
    "no images": (REFUSED, lambda root: write(root / "train.parquet", {"text": ROWS, "label": ROWS})),
    "bytes as images": (
        VALID,
        lambda root: write(root / "train.parquet", {"image": [c["bytes"] for c in cells(ROWS)], "label": ROWS}),
    ),
    "no rows": (REFUSED, lambda root: write(root / "train.parquet", {"image": [], "label": []} | {"x": []})),
    "one row": (REFUSED, lambda root: write(root / "train.parquet", {"image": cells(["cat"]), "label": ["cat"]})),
    "an empty file": (REFUSED, raw(b"")),
    "a text file": (REFUSED, raw(b"image,label\n")),
    "only its magic number": (REFUSED, raw(b"PAR1PAR1")),
    "a file that is cut": (REFUSED, cut(0.5)),
    "a file without its last bytes": (REFUSED, cut(0.99)),
    "only test.parquet": (REFUSED, simple(file="test.parquet")),
    "a clone with data/": (VALID, simple(file="data/train-00000-of-00001.parquet")),
    "a name in capitals": (VALID, simple(file="TRAIN.PARQUET")),
    "a name with brackets": (VALID, simple(file="train[1].parquet")),
}
SIBLINGS = {"shots[1]": "shots1", "a*": "ab", "b?": "bc", "c[!x]": "cy", "{d,e}": "d", "with space": "with", "傷": "x"}


def judge(folder: Path, expected: str) -> list[str]:
    """Train on ``set``; the recorded labels must name the classes of the rows."""
    outcome = command(folder, "train", *SETTINGS, f"data.path={json.dumps(str(folder / 'set'))}")
    return _judged(folder, expected, outcome.problems(*{VALID: (0,), REFUSED: (2,), EITHER: (0, 2)}[expected]))


def _judged(folder: Path, expected: str, problems: list[str]) -> list[str]:
    record = folder / "run" / "data.json"
    if expected != VALID or problems or not record.exists():
        return problems
    stored = json.loads(record.read_text())
    for split in ("train", "test"):
        if stored[split] is not None:
            named = [stored["class_names"][label] for label in stored[split]["labels"]]
            count = len(named)
            truth = (ROWS * 3)[:count]
            if sorted(set(named)) == ["cat", "dog", "eel"]:
                truth = [*ROWS, *ROWS[:20], *["eel"] * 4]
            if named != truth:
                problems.append(f"labels of {split} are of other classes: {named[:4]}, not {truth[:4]}")
    return problems


def _run(expected: str, build: Build, name: str) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        build(folder / name)
        return judge(folder, expected)

    return run


def _sibling(name: str, sibling: str) -> Callable[[Path], list[str]]:
    """A neighbour's table, whose classes are others, must not be read."""

    def run(folder: Path) -> list[str]:
        write(folder / name / "train.parquet", {"image": cells(ROWS), "label": ROWS}, KINDS)
        wrong = ["wrong", "other"] * 12
        write(folder / sibling / "train.parquet", {"image": cells(ROWS), "label": wrong}, ("wrong", "other"))
        outcome = command(folder, "train", *SETTINGS, f"data.path='{folder / name}'")
        return _judged(folder, VALID, outcome.problems(0))

    return run
