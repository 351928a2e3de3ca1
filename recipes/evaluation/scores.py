"""Scores of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score

CLASSIFICATION_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Score:
    """The score of one encoder under one protocol.

    Attributes:
        encoder: its name.
        protocol: its name in ``evaluation.protocols``.
        labels: share of the labelled training images that the protocol was fitted to.
        metrics: by name, shares of 1; tables show the first.
    """

    encoder: str
    protocol: str
    labels: float
    metrics: dict[str, float]


def classification_metrics(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy (mean recall of the classes that occur) and macro F1, by scikit-learn.

    Args:
        labels: int64 [N].
        predicted: int64 [N].
    """
    # recall_score, not balanced_accuracy_score: the same number, without a warning if a class that does not
    # occur is predicted
    balanced = recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    f1 = f1_score(labels, predicted, average="macro", zero_division=0)
    values = (accuracy_score(labels, predicted), balanced, f1)
    return {name: float(value) for name, value in zip(CLASSIFICATION_METRICS, values, strict=True)}


def shown_first(metrics: dict[str, float], metric: str) -> dict[str, float]:
    """The metrics, with ``metric`` first if it is among them."""
    return {name: metrics[name] for name in sorted(metrics, key=lambda name: name != metric)}
