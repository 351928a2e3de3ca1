"""Reads what an export stores for its inspection: out-of-fold probabilities, a threshold, scores of references."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multilevel.solvers import MultilevelError

INSPECTION, EVALUATION = "inspection.json", "evaluation.json"


@dataclass(frozen=True)
class Reference:
    """A score of something simpler than the model, such as raw pixels, and the model's own on the same images."""

    name: str
    metric: str
    score: float
    model: float


@dataclass(frozen=True)
class Stored:
    """Everything that an export stores for its inspection.

    Attributes:
        good: name of the good class; None if it is not stored.
        probabilities: of the labelled training images, by models that had not seen them, float64 [N, classes], or None.
        labels: their classes, int64 [N], or None.
        threshold: a stored threshold of the probability of a defect, or None.
        better: references whose score is above the model's.
    """

    good: str | None = None
    probabilities: np.ndarray | None = None
    labels: np.ndarray | None = None
    threshold: float | None = None
    better: list[Reference] = field(default_factory=list)


def read_stored(folder: Path, class_names: Sequence[str]) -> Stored:
    """Read ``inspection.json`` and ``evaluation.json`` of an export, if they are there.

    ``inspection.json`` is ``{"good": NAME, "probabilities": [[...]], "labels": [...], "threshold": NUMBER}``, with the
    probabilities of the labelled training images out of fold and the labels as numbers of classes; each entry may be
    missing. ``evaluation.json`` is ``{"metric": NAME, "model": SCORE, "references": {NAME: SCORE}}``, where higher is
    better and all scores are of the same images.

    Raises:
        MultilevelError: a file is broken or does not fit the model's classes.
    """
    inspection, evaluation = _read(folder / INSPECTION), _read(folder / EVALUATION)
    try:
        better = [
            Reference(str(name), str(evaluation["metric"]), float(score), float(evaluation["model"]))
            for name, score in evaluation.get("references", {}).items()
            if score > evaluation["model"]
        ]
        threshold = inspection.get("threshold")
        threshold = None if threshold is None else float(threshold)
        return Stored(inspection.get("good"), *_out_of_fold(inspection, class_names), threshold, better)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MultilevelError(
            f"{folder} has an {INSPECTION} or {EVALUATION} that cannot be used ({error}): export the run again"
        ) from error


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MultilevelError(f"{path} cannot be read ({error}): export the run again") from error


def _out_of_fold(
    inspection: Mapping[str, Any], class_names: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities and labels, checked against the classes."""
    good = inspection.get("good")
    if good is not None and good not in class_names:
        raise ValueError(f"the good class {good!r} is not a class of the model")
    if inspection.get("probabilities") is None:
        return None, None
    probabilities = np.array(inspection["probabilities"], np.float64)
    labels = np.array(inspection["labels"], np.int64)
    if probabilities.shape != (len(labels), len(class_names)) or not np.isfinite(probabilities).all():
        raise ValueError(f"probabilities of shape {probabilities.shape} for {len(labels)} labels")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(f"labels outside 0 to {len(class_names) - 1}")
    return probabilities, labels
