"""multilevel monitor EXPORT FILE ... [SETTING=VALUE ...]: measure the drift of new images from the training images

Measures how far new images (files or folders) have drifted from the training images in the exported encoder's features.
Writes monitor.json and, next to it, monitor.png.

Exit status: 0 whatever the verdict; 1 if a file could not be read (it is named); 2 for wrong input.

  multilevel monitor runs/guided_mae-digits-20260101-120000/export images/today
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multilevel.commands.drift_picture import draw_drift
from multilevel.commands.image_files import ImageFileSettings, Request, Results, writable
from multilevel.commands.predict import report_unreadable
from multilevel.recipes.export import DriftReference
from multilevel.recipes.export.drift import DRIFT, FEWEST, PERMUTATIONS, QUANTILE, RULE, Drift, compare_features
from multilevel.recipes.export.exported import probabilities
from multilevel.runs.folder import write_whole
from multilevel.solvers import DataError, SettingError

LISTED = 10  # of the most unusual images in the report
NAMED = 5  # of the unusual images on the screen


@dataclass
class MonitorSettings(ImageFileSettings):
    """Settings of ``multilevel monitor``.

    Args:
        output: the .json file to write; the picture is written next to it, as .png.
    """

    output: str = "monitor.json"


SETTINGS = MonitorSettings


def main(arguments: Sequence[str]) -> int:
    """Compare new images with the training images; returns 1 if some could not be read."""
    request = Request.parse("monitor", arguments, MonitorSettings)
    reference = DriftReference.load(request.model.folder)
    path = writable(request.output)
    picture = path.with_suffix(".png")
    if picture == path:
        raise SettingError("output", request.output, "a .json file: the picture is written next to it, as .png")
    results = request.run()
    if min(len(results.files), len(reference.features)) < FEWEST:
        counts = f"{len(results.files)} images to compare with {len(reference.features)} training images"
        raise DataError(f"{counts} are too few: give at least {FEWEST} readable images of each")
    if not np.isfinite(results.features).all():
        raise DataError("the model's features of these images are not finite: export a run that has not diverged")
    drift = compare_features(reference.features, results.features)
    report = new_report(request, reference, results, drift)
    draw_drift(picture, drift.reference_distances, drift.distances, drift.threshold, report["verdict"])
    write_whole(path, json.dumps(report, indent=2) + "\n")
    print(in_words(report))
    print(f"{path}\n{picture}")
    report_unreadable(results)
    return 1 if results.errors else 0


def new_report(request: Request, reference: DriftReference, results: Results, drift: Drift) -> dict[str, Any]:
    """The contents of monitor.json."""
    unusual = drift.distances > drift.threshold
    listed = np.argsort(-drift.distances, kind="stable")[:LISTED]
    return {
        "verdict": drift.verdict,
        "rule": RULE,
        "export": str(request.folder),
        "images": len(results.files),
        "reference_images": len(reference.features),
        "p_value": drift.p_value,
        "squared_mmd": drift.mmd,
        "permutations": PERMUTATIONS,
        "separability": drift.separability,
        "threshold": drift.threshold,
        "unusual_images": int(unusual.sum()),
        "most_unusual": [
            {"file": str(results.files[row]), "distance": float(drift.distances[row]), "unusual": bool(unusual[row])}
            for row in listed
        ],
        "predictions": predictions(request, reference, results),
        "unreadable": {str(file): error for file, error in results.errors.items()},
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
    lines = [
        report["verdict"],
        f"{report['images']} images against {report['reference_images']} training ones: p = {report['p_value']:.3g}, "
        f"told apart with an area under the ROC curve of {report['separability']:.2f}",
        f"{report['unusual_images']} unusual images, where about {expected:.0f} would be expected",
    ]
    if report["predictions"]:
        confidence = report["predictions"]["mean_confidence"]
        lines.append(f"mean confidence {confidence['new']:.2f}, on training images {confidence['training']:.2f}")
    named = [image for image in report["most_unusual"] if image["unusual"] or report["verdict"] == DRIFT][:NAMED]
    lines += [f"  {image['file']}: distance {image['distance']:.2f}" for image in named]
    return "\n".join(lines)


def _shares(chances: np.ndarray) -> np.ndarray:
    """For each class, the share of images with this class as the most probable [classes]."""
    return np.bincount(chances.argmax(1), minlength=chances.shape[1]) / len(chances)
