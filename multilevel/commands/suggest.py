"""multilevel suggest EXPORT FILE ... [SETTING=VALUE ...]: list the images whose labels would help most

Chooses images (of files or folders) to label for the next training: images between two classes, as unlike each other as
possible (BADGE, Ash et al. 2020), and at most every fifth because it is unusual, unlike the training images. For an
encoder without a classifier, only as unlike each other as possible. Of near copies, one is listed. Writes CSV with
rank, file and reason and, next to it, a sheet of the pictures, as .png.

Exit status: 0; 1 if a file could not be read (it is named, and the others are considered); 2 for wrong input.

  multilevel suggest line/current images/this_week count=50
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from multilevel.commands.contact_sheet import draw_contact_sheet
from multilevel.commands.image_files import ImageFileSettings, Request, Results
from multilevel.commands.outputs import Outputs, csv_line, csv_text
from multilevel.commands.predict import report_unreadable
from multilevel.configuration.command_line import read
from multilevel.recipes.data.groups import unit_vectors
from multilevel.recipes.data.pictures import to_pixels
from multilevel.recipes.export import DriftReference, ExportedModel
from multilevel.recipes.export.drift import FEWEST, QUANTILE, mahalanobis
from multilevel.recipes.export.exported import probabilities
from multilevel.recipes.export.suggest import Choice, choose
from multilevel.solvers import DataError, SettingError
from multilevel.solvers.files import shown
from multilevel.solvers.ranges import Above, AtMost, Count, Seed

SIDE = 32  # pixels per side at which near copies are compared
CERTAIN = 0.9
ROUNDING = 1e-9  # of a correlation
HEADER = ["rank", "file", "reason", "kind", "class", "probability", "next_class", "next_probability", "novelty"]


@dataclass
class SuggestSettings(ImageFileSettings):
    """Settings of ``multilevel suggest``.

    Args:
        output: the .csv file to write; the pictures are written next to it, as .png.
        count: number of images to list.
        near_copies: an image is left out if its correlation with a listed one exceeds this (grey, 32 x 32 pixels); 1
            leaves out none.
        seed: seed of the choice among unlike images.
    """

    output: str = "suggestions.csv"
    count: Count = 50
    near_copies: Annotated[float, Above(0), AtMost(1)] = 0.95
    seed: Seed = 0


SETTINGS = SuggestSettings


@dataclass(frozen=True)
class Suggestion:
    """An image to label, the reason in words, and the columns of the table behind it."""

    file: Path
    reason: str
    columns: list[str]


def main(arguments: Sequence[str]) -> int:
    """List images to label; returns 1 if some could not be read."""
    request = Request.parse("suggest", arguments, SuggestSettings)
    settings = read("suggest", arguments, SuggestSettings, words=True, recipe=False).settings
    if Path(settings.output).suffix.lower() == ".png":
        raise SettingError("output", settings.output, "a .csv file: the pictures are written next to it, as .png")
    outputs = Outputs.of(settings.output, request.files, [request.model.folder], [".png"])
    reference = DriftReference.load(request.model.folder)
    results = request.run()
    if not results.files:
        report_unreadable(results)
        raise DataError("no file could be read as an image")
    if not np.isfinite(results.features).all():
        raise DataError("the model's features of these images are not finite: export a run that has not diverged")
    copies = NearCopies(results.files, request.model, settings.near_copies)
    chances = None if results.logits is None else probabilities(results.logits)
    novelty = novelty_of(reference, results)
    chosen = choose(results.features, chances, novelty, settings.count, copies, settings.seed)
    names = request.model.class_names
    suggestions = [suggestion(choice, results.files, names, chances, novelty) for choice in chosen]
    sheet = io.BytesIO()
    draw_contact_sheet(sheet, [(entry.file, entry.reason) for entry in suggestions], request.model)
    outputs.write(table(suggestions), sheet.getvalue())
    if chances is None:
        outputs.print("the export has no classifier: images are listed for their diversity only")
    reasons = [choice.kind for choice in chosen]
    counts = ", ".join(f"{kind} {reasons.count(kind)}" for kind in dict.fromkeys(reasons))
    outputs.print(
        f"{len(chosen)} of {len(results.files)} images to label ({counts}); {copies.left_out} near copies left out"
    )
    outputs.print_paths()
    report_unreadable(results)
    return 1 if results.errors else 0


def novelty_of(reference: DriftReference, results: Results) -> np.ndarray | None:
    """Each image's distance from the training images [N], divided by that within which 99% of these are; None if the
    reference has too few of them."""
    if len(reference.sample.features) < FEWEST:
        return None
    before, after = mahalanobis(reference.sample.features, results.features, seed=0)
    return after / np.quantile(before, QUANTILE)


def suggestion(
    choice: Choice, files: Sequence[Path], names: Sequence[str], chances: np.ndarray | None, novelty: np.ndarray | None
) -> Suggestion:
    """A chosen image with its reason and numbers."""
    row, columns = choice.row, ["", "", "", ""]
    distance = "" if novelty is None else f"{novelty[row]:.2f}"
    reason = "unlike the other images listed"
    if chances is not None:
        first, second = np.argsort(-chances[row], kind="stable")[:2]
        likely, next_likely = (f"{chances[row, number]:.2f}" for number in (first, second))
        columns = [names[first], f"{chances[row, first]:.6f}", names[second], f"{chances[row, second]:.6f}"]
        if chances[row, first] < CERTAIN:
            reason = f"uncertain between {names[first]} and {names[second]}: {likely} and {next_likely}"
        else:
            reason = f"{reason}: {names[first]} with {likely}"
    if choice.kind == "unusual":
        reason = f"unusual: {distance} times as far from the training images as {QUANTILE:.0%} of these are"
    return Suggestion(files[row], reason, [choice.kind, *columns, distance])


def table(suggestions: Sequence[Suggestion]) -> str:
    """The CSV, the most helpful image first."""
    rows = [map(csv_text, (shown(entry.file), entry.reason, *entry.columns)) for entry in suggestions]
    return "".join([csv_line(HEADER), *(csv_line([rank, *row]) for rank, row in enumerate(rows, start=1))])


class NearCopies:
    """Whether an image is a near copy of others, by the correlation of its pixels; called with rows of ``files``.

    Args:
        files: readable images.
        model: opens them, and says how an image becomes a square.
        limit: correlation above which two images are near copies.

    Attributes:
        left_out: number of near copies met so far.
    """

    def __init__(self, files: Sequence[Path], model: ExportedModel, limit: float) -> None:
        self.files, self.model, self.limit = files, model, limit
        self.left_out = 0
        self._known: dict[int, np.ndarray] = {}

    def __call__(self, row: int, chosen: list[int]) -> bool:
        copy = any(float(self._pattern(row) @ self._pattern(other)) > self.limit + ROUNDING for other in chosen)
        self.left_out += copy
        return copy

    def _pattern(self, row: int) -> np.ndarray:
        """Grey pixels [SIDE * SIDE] of mean 0 and norm 1; an image of one colour is all 0, and a copy of none."""
        if row not in self._known:
            with self.model.open(self.files[row]) as picture:
                pixels = to_pixels(picture, SIDE, 1, self.model.fit, self.model.pixel_range).astype(np.float64)
            self._known[row] = unit_vectors(pixels.reshape(1, -1))[0]
        return self._known[row]
