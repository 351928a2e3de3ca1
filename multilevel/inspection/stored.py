"""Reads what an export stores for its inspection: held-out probabilities, operating point, scores of references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multilevel.recipes.export.folder import EVALUATION, INSPECTION, read_json
from multilevel.recipes.export.operating_point import OperatingPoint, stored_operating_point
from multilevel.solvers import MultilevelError


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
        point: the operating point, or None.
        probabilities: of the labelled training images, by models that had not seen them, float64 [N, classes], or None.
        labels: their classes, int64 [N], or None.
        better: references whose score is above the model's.
    """

    point: OperatingPoint | None = None
    probabilities: np.ndarray | None = None
    labels: np.ndarray | None = None
    better: list[Reference] = field(default_factory=list)

    @property
    def good(self) -> str | None:
        """The class of good parts, if it is stored."""
        return None if self.point is None else self.point.good


def read_stored(folder: Path, class_names: Sequence[str]) -> Stored:
    """Read ``inspection.json`` and ``evaluation.json`` of an export, if they are there.

    Of ``inspection.json``, ``operating_point`` (see ``OperatingPoint``), ``probabilities`` [[...]] of held-out training
    images and their ``labels`` [...] are read; each may be missing. ``evaluation.json`` is ``{"metric": NAME, "model":
    SCORE, "references": {NAME: SCORE}}``, where higher is better and all scores are of the same images.

    Raises:
        MultilevelError: a file is broken or does not fit the model's classes.
    """
    try:
        inspection, evaluation = read_json(folder / INSPECTION), read_json(folder / EVALUATION)
        better = [
            Reference(str(name), str(evaluation["metric"]), float(score), float(evaluation["model"]))
            for name, score in evaluation.get("references", {}).items()
            if score > evaluation["model"]
        ]
        point = stored_operating_point(inspection, class_names)
        return Stored(point, *_out_of_fold(inspection, class_names), better)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MultilevelError(
            f"{folder} has an {INSPECTION} or {EVALUATION} that cannot be used ({error}): export the run again"
        ) from error


def _out_of_fold(
    inspection: Mapping[str, Any], class_names: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities and labels, checked against the classes."""
    if inspection.get("probabilities") is None:
        return None, None
    probabilities = np.array(inspection["probabilities"], np.float64)
    labels = np.array(inspection["labels"], np.int64)
    if probabilities.shape != (len(labels), len(class_names)) or not np.isfinite(probabilities).all():
        raise ValueError(f"probabilities of shape {probabilities.shape} for {len(labels)} labels")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(f"labels outside 0 to {len(class_names) - 1}")
    return probabilities, labels
