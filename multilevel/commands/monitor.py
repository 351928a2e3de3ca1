"""multilevel monitor EXPORT FILE ... [SETTING=VALUE ...]: measure the drift of new images from the training images

Measures how far new images (files or folders) have drifted from the training images, in the exported encoder's features
and in the optics of their files: sharpness, brightness, contrast, noise and size. Writes monitor.json and, next to it,
monitor.png. output=NAME.json changes both names; no image is ever overwritten.

Exit status: 0 no drift seen; 3 drift: look at these; 4 train again; 1 no drift seen, but a file could not be read;
2 for wrong input (nothing is written). Unreadable files are named whatever the status.

monitor.json
  verdict, notes          the answer, and what limits the tests
  tests                   of each test: name, statistic, p_value, adjusted_p_value (for the number of tests), changed
  optics                  of each measure: unit, and quartiles of training and new images; null with an export of an
                          earlier version, which has none
  images, reference_images, groups, reference_groups
                          how many of them the tests compared, and how many groups the tests kept together
  p_value, squared_mmd, separability
                          the features' test, and how well a linear classifier tells new from training images
  threshold, unusual_images, most_unusual
                          distances from the training images, and the files that are farthest
  predictions             shares of the predicted classes and mean confidence; null without a classifier
  unreadable              for each file that could not be read, the reason

  multilevel monitor runs/guided_mae-digits-20260101-120000/export images/today
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multilevel.commands.drift_picture import draw_drift
from multilevel.commands.image_files import ImageFileSettings, Request, Results
from multilevel.commands.outputs import Outputs
from multilevel.commands.predict import report_unreadable
from multilevel.recipes.export import DriftReference
from multilevel.recipes.export.drift import DRIFT, FEWEST, NO_DRIFT, QUANTILE, RULE, TRAIN_AGAIN, Drift, Sample, compare
from multilevel.recipes.export.exported import probabilities
from multilevel.recipes.export.optics import MEASURES
from multilevel.recipes.export.two_sample import PERMUTATIONS
from multilevel.solvers import DataError, SettingError
from multilevel.solvers.files import on_screen, shown

LISTED = 10  # of the most unusual images in the report
NAMED = 5  # of the unusual images on the screen
STATUS = {NO_DRIFT: 0, DRIFT: 3, TRAIN_AGAIN: 4}
UNREADABLE = 1  # if no drift was seen
NO_OPTICS = "the export has no optics of its training images: export the run again to compare optics, too"


@dataclass
class MonitorSettings(ImageFileSettings):
    """Settings of ``multilevel monitor``.

    Args:
        output: the .json file to write; the picture is written next to it, as .png.
    """

    output: str = "monitor.json"


SETTINGS = MonitorSettings


def main(arguments: Sequence[str]) -> int:
    """Compare new images with the training images; returns the status of the verdict."""
    request = Request.parse("monitor", arguments, MonitorSettings)
    reference = DriftReference.load(request.model.folder)
    if Path(request.output).suffix.lower() == ".png":
        raise SettingError("output", request.output, "a .json file: the picture is written next to it, as .png")
    outputs = Outputs.of(request.output, request.files, [request.model.folder], [".png"])
    results = request.run(optics=reference.sample.optics is not None)
    if min(len(results.files), len(reference.sample)) < FEWEST:
        counts = f"{len(results.files)} images to compare with {len(reference.sample)} training images"
        raise DataError(f"{counts} are too few: give at least {FEWEST} readable images of each")
    if not np.isfinite(results.features).all():
        raise DataError("the model's features of these images are not finite: export a run that has not diverged")
    new = new_sample(results)
    drift = compare(reference.sample, new)
    report = new_report(request, reference, results, drift)
    picture = io.BytesIO()
    draw_drift(picture, drift, reference.sample, new)
    outputs.write(json.dumps(report, indent=2) + "\n", picture.getvalue())
    outputs.print(in_words(report))
    outputs.print_paths()
    report_unreadable(results)
    return STATUS[drift.verdict] or (UNREADABLE if results.errors else 0)


def new_sample(results: Results) -> Sample:
    """The new images as a sample to compare."""
    if results.optics is None:
        return Sample(results.features)
    return Sample(results.features, results.optics.measures, thumbnails=results.optics.thumbnails)


def new_report(request: Request, reference: DriftReference, results: Results, drift: Drift) -> dict[str, Any]:
    """The contents of monitor.json."""
    unusual = drift.distances > drift.threshold
    listed = np.argsort(-drift.distances, kind="stable")[:LISTED]
    of_features = drift.tests[0]
    return {
        "verdict": drift.verdict,
        "notes": [*drift.notes, *([] if results.optics else [NO_OPTICS])],
        "rule": RULE,
        "export": request.model.name,
        "images": len(results.files),
        "reference_images": len(reference.sample),
        "groups": drift.groups,
        "reference_groups": drift.reference_groups,
        "tests": [
            {
                "name": test.name,
                "statistic": test.statistic,
                "p_value": test.p_value,
                "adjusted_p_value": test.adjusted,
                "changed": test.changed,
            }
            for test in drift.tests
        ],
        "optics": optics(reference, results),
        "p_value": of_features.p_value,
        "squared_mmd": of_features.statistic,
        "permutations": PERMUTATIONS,
        "separability": drift.separability,
        "threshold": drift.threshold,
        "unusual_images": int(unusual.sum()),
        "most_unusual": [
            {"file": shown(results.files[row]), "distance": float(drift.distances[row]), "unusual": bool(unusual[row])}
            for row in listed
        ],
        "predictions": predictions(request, reference, results),
        "unreadable": {shown(file): error for file, error in results.errors.items()},
    }


def optics(reference: DriftReference, results: Results) -> dict[str, Any] | None:
    """Unit and quartiles of each measure, for training and new images; None with an export that has no optics."""
    if reference.sample.optics is None or results.optics is None:
        return None
    before, after = (
        np.quantile(measures, [0.25, 0.5, 0.75], axis=0).T.tolist()
        for measures in (reference.sample.optics, results.optics.measures)
    )
    return {
        name: {"unit": unit, "training_quartiles": training, "new_quartiles": new}
        for (name, unit), training, new in zip(MEASURES.items(), before, after, strict=True)
    }


def predictions(request: Request, reference: DriftReference, results: Results) -> dict[str, Any] | None:
    """The share of each predicted class and the mean confidence, for training and new images; None without a
    classifier."""
    if reference.logits is None or results.logits is None:
        return None
    training, new = probabilities(reference.logits), probabilities(results.logits)
    shares = {
        name: {"training": float(before), "new": float(after)}
        for name, before, after in zip(request.model.class_names, _shares(training), _shares(new), strict=True)
    }
    confidence = {"training": float(training.max(1).mean()), "new": float(new.max(1).mean())}
    return {"shares": shares, "mean_confidence": confidence}


def in_words(report: Mapping[str, Any]) -> str:
    """A summary of the report in a few lines."""
    expected = (1 - QUANTILE) * report["images"]
    of_features = report["tests"][0]
    lines = [
        report["verdict"],
        *map(change_in_words, optics_changed(report)),
        f"{report['images']} images against {report['reference_images']} training ones: features with "
        f"p = {of_features['adjusted_p_value']:.3g}, told apart with an area under the ROC curve of "
        f"{report['separability']:.2f}",
        f"{report['unusual_images']} unusual images, where about {expected:.0f} would be expected",
    ]
    if report["predictions"]:
        confidence = report["predictions"]["mean_confidence"]
        lines.append(f"mean confidence {confidence['new']:.2f}, on training images {confidence['training']:.2f}")
    named = [image for image in report["most_unusual"] if image["unusual"] or report["verdict"] == DRIFT][:NAMED]
    lines += [f"  {on_screen(image['file'])}: distance {image['distance']:.2f}" for image in named]
    return "\n".join([*lines, *report["notes"]])


def optics_changed(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measures whose test found a change: name, unit, medians and adjusted p-value."""
    return [
        {"name": test["name"], "adjusted_p_value": test["adjusted_p_value"], **report["optics"][test["name"]]}
        for test in report["tests"][1:]
        if test["changed"]
    ]


def change_in_words(change: Mapping[str, Any]) -> str:
    """A changed measure, for example ``noise: median 2.5, now 0.37 grey levels (p = 0.008)``."""
    before, after = change["training_quartiles"][1], change["new_quartiles"][1]
    name, unit, p_value = change["name"], change["unit"], change["adjusted_p_value"]
    return f"{name}: median {before:.3g}, now {after:.3g} {unit} (p = {p_value:.3g})"


def _shares(chances: np.ndarray) -> np.ndarray:
    """For each class, the share of images with this class as the most probable [classes]."""
    return np.bincount(chances.argmax(1), minlength=chances.shape[1]) / len(chances)
