"""Predictions for many pictures in one command, compared with those for what Pillow alone makes of each."""

from __future__ import annotations

import csv
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageOps

from trials.base import SCRATCH, Named, Outcome, command, finished

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "AVIF", "DIB", "JPEG2000")
LARGEST = 30_000_000  # pixels of a picture that is decoded here, too
ROUNDING = 1.5e-6  # of probabilities with six digits
BROKEN, EITHER = "broken", "either"  # must be refused; may be refused
Rows = dict[str, dict[str, str]]  # by file
Truth = Image.Image | str
Write = Callable[[Path], Truth | None]  # writes a file; returns the picture in it, None for what Pillow makes of it


@dataclass(frozen=True)
class Picture:
    """A file of a trial: its name and what writes it."""

    trial: str
    file: str
    write: Write


@dataclass(eq=False)
class Group:
    """Pictures that one command reads."""

    number: str
    pictures: Sequence[Picture]

    def trials(self) -> Iterator[Named]:
        """A trial for each picture."""
        for picture in self.pictures:
            yield picture.trial, lambda folder, picture=picture: self.problems[picture.trial]

    @cached_property
    def problems(self) -> dict[str, list[str]]:
        """Of each trial; the command runs once for all of them, and for each one if it did not end well."""
        folder = SCRATCH[0] / self.number
        for name in ("pictures", "plain"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(finished() / "export", folder / "export")
        truths: dict[str, Truth] = {}
        for picture in self.pictures:
            path = folder / "pictures" / picture.file
            truth = picture.write(path)
            truths[picture.file] = plain(path) if truth is None else truth
            if isinstance(truth := truths[picture.file], Image.Image):
                truth.save(folder / "plain" / f"{picture.file}.png", compress_level=1)
        before = {path: path.read_bytes() for path in (folder / "pictures").iterdir()}
        plain_rows = _rows(folder, command(folder, "predict", "export", "plain", "output=plain.csv"), "plain.csv")
        names = [f"pictures/{picture.file}" for picture in self.pictures]
        outcome = command(folder, "predict", "export", *names, "output=p.csv")
        rows = _rows(folder, outcome, "p.csv")
        problems = {}
        for picture in self.pictures:
            own, said = rows, outcome
            if rows is None:
                name = f"pictures/{picture.file}"
                said = command(folder, "predict", "export", name, f"output={picture.trial[:20].strip()}.csv")
                own = _rows(folder, said, f"{picture.trial[:20].strip()}.csv")
            problems[picture.trial] = judge(picture.file, truths[picture.file], own, plain_rows or {})
            problems[picture.trial] += said.problems(0, 1) if own is None or own is not rows else []
        first = problems[self.pictures[0].trial]
        if rows is not None:
            first += outcome.problems(int(any(row["error"] for row in rows.values())))
        elif not any(problems.values()):
            first += ["together: ", *outcome.problems(0, 1)]
        first += [f"{path.name} is changed" for path, content in before.items() if path.read_bytes() != content]
        shutil.rmtree(folder)
        return problems


def judge(
    file: str, truth: Truth, rows: dict[str, dict[str, str]] | None, plain_rows: dict[str, dict[str, str]]
) -> list[str]:
    """What is wrong with the row of a file."""
    row = (rows or {}).get(f"pictures/{file}")
    if row is None:
        return ["no row"]
    if bool(row["label"]) == bool(row["error"]):
        return [f"label {row['label']!r} and error {row['error']!r}"]
    if isinstance(truth, str):
        return ["a broken file has a label"] if truth == BROKEN and row["label"] else []
    expected = plain_rows[f"plain/{file}.png"]
    if row["error"]:
        return [f"a valid picture is refused: {row['error'][:150]}"]
    difference = abs(float(row["a"]) - float(expected["a"]))
    return [f"probability {row['a']} instead of {expected['a']}"] if difference > ROUNDING else []


def plain(path: Path) -> Truth:
    """What Pillow reads: upright, on white, in colour."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as picture:
                if picture.format not in FORMATS or picture.width * picture.height > LARGEST:
                    return EITHER
                wide = picture.mode.startswith("I") or picture.mode == "F"
                picture.load()
                if wide:  # a scale is for the whole set to choose
                    return EITHER
                try:
                    turned = ImageOps.exif_transpose(picture)
                except Exception:
                    return EITHER
                return on_white(turned)
        except Exception:
            return BROKEN


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in colour, its transparent parts white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    colour = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colour.size, (255, 255, 255, 255)), colour).convert("RGB")


def noise(width: int, height: int, seed: str) -> Image.Image:
    """A colour picture with smooth and random parts."""
    generator = random.Random(seed)
    small = Image.frombytes("RGB", (4, 4), generator.randbytes(48)).resize((width, height), Image.Resampling.BICUBIC)
    if width * height > 100_000:
        return small
    return Image.blend(small, Image.frombytes("RGB", (width, height), generator.randbytes(3 * width * height)), 0.3)


def _rows(folder: Path, outcome: Outcome, name: str) -> Rows | None:
    if outcome.status not in (0, 1) or not (folder / name).exists():
        return None
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file)}
