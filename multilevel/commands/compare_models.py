"""multilevel compare-models OLD NEW FOLDER [SETTING=VALUE]: decide whether a new exported model is better than the old

Runs two exported models on the same labelled images, FOLDER/CLASS/NAME.png as in data=folder, and compares them image
by image: balanced accuracy and area under the ROC curve (mean over the classes), accuracy, and the recall of each
class, with 95% intervals of the differences (paired bootstrap) and McNemar's exact test. Classes are matched by name.
Take images that neither model was trained on: exports hold no list of their training images, so this is not checked.

Verdict
  promote      the whole interval of the metric's difference is above 0, and part of it above minimum_effect
  keep         the whole interval is below minimum_effect
  not decided  otherwise, with the number of images that would be needed; also with fewer than five images, or groups,
               of a class

Writes a .json file and, next to it, a picture as .png. Exit status: 0 for promote, 3 for keep, 4 for not decided; 2 for
wrong input, such as an image that cannot be read (nothing is written).

  multilevel compare-models line/current RUN/export fresh/ minimum_effect=0.02
  multilevel compare-models line/current RUN/export fresh/ group='part\\d+' && multilevel promote RUN/export
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from multilevel.commands.comparison_picture import draw_comparison
from multilevel.commands.image_files import ImageFileSettings, Request
from multilevel.commands.labelled_images import Labelled, known_to, labelled_images
from multilevel.commands.outputs import Outputs
from multilevel.configuration.command_line import read
from multilevel.recipes.export import ExportedModel
from multilevel.recipes.export.exported import probabilities
from multilevel.recipes.export.paired import FEWEST, Comparison, Predictions, Row, compare, decide, more_images
from multilevel.recipes.settings import chosen_device
from multilevel.solvers import DataError, MultilevelError, SettingError
from multilevel.solvers.files import shown
from multilevel.solvers.ranges import Above, Below, OneOf, Seed, Text, require

STATUS = {"promote": 0, "keep": 3, "not decided": 4}
METRICS = ("balanced_accuracy", "area")


@dataclass
class CompareModelsSettings(ImageFileSettings):
    """Settings of ``multilevel compare-models``.

    Args:
        output: the .json file to write; the picture is written next to it, as .png.
        metric: the measure that the verdict is about: balanced_accuracy or area (under the ROC curve).
        minimum_effect: the smallest worthwhile difference of the metric.
        missing_class: if one model does not know a class of the images: refuse; leave_out its images, for both models;
            or count them, as errors of that model (the area is of the common classes).
        group: what keeps images of one part together: a regular expression, whose match in a file's path below FOLDER
            (or the match's first group) names the part; or folder, the file's folder. None: all are independent.
        seed: seed of the bootstrap.
    """

    output: str = "compare-models.json"
    metric: Annotated[str, OneOf(*METRICS)] = "balanced_accuracy"
    minimum_effect: Annotated[float, Above(0), Below(math.inf)] = 0.01
    missing_class: Annotated[str, OneOf("refuse", "leave_out", "count")] = "refuse"
    group: Text | None = None
    seed: Seed = 0


SETTINGS = CompareModelsSettings


def main(arguments: Sequence[str]) -> int:
    """Compare two exported models; returns the verdict's exit status."""
    line = read("compare-models", arguments, CompareModelsSettings, words=True, recipe=False)
    settings, words = line.settings, line.words
    usage = "two exported folders and a folder of images: multilevel compare-models OLD NEW FOLDER"
    require("compare-models", " ".join(words) or None, len(words) == 3, usage)
    device, folder = chosen_device(settings.device), Path(words[2])
    models = {word: load(word, device) for word in words[:2]}
    if len(models) < 2 or len({model.identity for model in models.values()}) < 2:
        raise SettingError("NEW", words[1], f"another model than OLD={words[0]}")
    images, left_out = known_to(models, labelled_images(folder, settings.group), settings.missing_class)
    if Path(settings.output).suffix.lower() == ".png":
        raise SettingError("output", settings.output, "a .json file: the picture is written next to it, as .png")
    exports = [model.folder for model in models.values()]
    outputs = Outputs.of(settings.output, images.files, exports, [".png"])
    old, new = (predictions(model, images, settings.batch_size) for model in models.values())
    comparison = compare(images.labels, images.class_names, old, new, images.groups, settings.seed)
    report = new_report(settings, models, images, left_out, comparison)
    rows = [comparison.balanced_accuracy, *([comparison.area] if comparison.area else []), *comparison.recalls]
    picture = io.BytesIO()
    draw_comparison(picture, rows, settings.minimum_effect, report["verdict"])
    outputs.write(json.dumps(report, indent=2) + "\n", picture.getvalue())
    outputs.print(*left_out, report["sentence"], *table([*rows, comparison.accuracy]))
    if comparison.p_value is not None:
        outputs.print(f"McNemar's exact test of equal accuracies: p = {comparison.p_value:.3g}")
    outputs.print_paths()
    return STATUS[report["verdict"]]


def load(folder: str, device: Any) -> ExportedModel:
    """An exported classifier.

    Raises:
        SettingError: the folder is not an export.
        MultilevelError: a broken export, or an encoder without a classifier.
    """
    model = ExportedModel(Path(folder), device)
    if not model.class_names:
        raise MultilevelError(f"{folder} holds an encoder without a classifier: it labels no images")
    return model


def predictions(model: ExportedModel, images: Labelled, batch_size: int) -> Predictions:
    """A model's answers, by the numbers of the images' classes.

    Raises:
        DataError: an image cannot be read, or the model's outputs are not finite.
    """
    results = Request(model, model.folder, images.files, "", batch_size).run()
    if results.errors:
        file, reason = next(iter(results.errors.items()))
        raise DataError(f"{shown(file)}: {reason}; {len(results.errors)} of {len(images.files)} files cannot be read")
    assert results.logits is not None
    if not np.isfinite(results.logits).all():
        raise DataError("the model's outputs for these images are not finite: export a run that has not diverged")
    known = {name: number for number, name in enumerate(model.class_names)}
    chances = probabilities(results.logits)
    numbers = np.array([images.class_names.index(name) if name in images.class_names else -1 for name in known])
    absent = np.full(len(chances), np.nan)
    columns = [chances[:, known[name]] if name in known else absent for name in images.class_names]
    return Predictions(numbers[chances.argmax(1)], np.stack(columns, axis=1))


def new_report(
    settings: CompareModelsSettings,
    models: Mapping[str, ExportedModel],
    images: Labelled,
    lines: Sequence[str],
    comparison: Comparison,
) -> dict[str, Any]:
    """The contents of the .json file.

    Raises:
        SettingError: the metric is the area, which needs two classes that both models know.
    """
    row = comparison.balanced_accuracy if settings.metric == "balanced_accuracy" else comparison.area
    if row is None:
        expected = "balanced_accuracy: the area needs two classes that both models know"
        raise SettingError("metric", settings.metric, expected)
    verdict = decide(row, comparison, settings.minimum_effect)
    more = more_images(row, settings.minimum_effect) if verdict == "not decided" else None
    sides = zip(("old", "new"), models, strict=True)
    measures = [comparison.balanced_accuracy, comparison.area, comparison.accuracy, *comparison.recalls]
    return {
        "verdict": verdict,
        "sentence": sentence(verdict, row, comparison, more),
        "models": {side: {"export": models[word].name, "identity": models[word].identity} for side, word in sides},
        "metric": settings.metric,
        "minimum_effect": settings.minimum_effect,
        "images": len(images.files),
        "groups": None if images.groups is None else comparison.units,
        "measures": [{**asdict(measure), "difference": measure.difference} for measure in measures if measure],
        "mcnemar_p_value": comparison.p_value,
        "more_images": more,
        "remarks": list(lines),
        "trained_on_these_images": "unknown: exports hold no list of their training images",
    }


def sentence(verdict: str, row: Row, comparison: Comparison, more: int | None) -> str:
    """The verdict with its reason, and the classes that the new model recalls worse."""
    low, high = (f"{100 * bound:+.1f}" for bound in row.interval)
    text = (
        f"{verdict}: {row.name} {row.new:.1%} after {row.old:.1%}, {100 * row.difference:+.1f} points "
        f"(95% interval {low} to {high}, {row.images} images)"
    )
    if verdict == "not decided":
        text += f"; {remedy(row, comparison, more)}"
    worse = [recall for recall in comparison.recalls if recall.interval[1] < 0]
    return "; ".join([text, *(f"{recall.name} falls by {-100 * recall.difference:.1f} points" for recall in worse)])


def remedy(row: Row, comparison: Comparison, more: int | None) -> str:
    """Why a comparison is not decided, and what would decide it."""
    if comparison.fewest < FEWEST:
        rarest = min(comparison.recalls, key=lambda recall: recall.images)
        return f"{rarest.name} rests on {comparison.fewest} images or groups, and {FEWEST} are the fewest"
    if more is None:
        return "both models order the images of each class alike, however they are drawn: other images are needed"
    return f"about {float(f'{more:.2g}'):,.0f} more images would be needed"  # a rough number


def table(rows: Sequence[Row]) -> list[str]:
    """The measures in aligned columns."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  {'images':>6}  {'old':>6}  {'new':>6}  {'points':>6}  95% interval"]
    for row in rows:
        low, high = (100 * bound for bound in row.interval)
        shares = f"{row.images:6}  {row.old:6.1%}  {row.new:6.1%}  {100 * row.difference:+6.1f}"
        lines.append(f"{row.name:{width}}  {shares}  {low:+.1f} to {high:+.1f}")
    return lines
