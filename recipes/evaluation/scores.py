"""Scores of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multilevel.recipes.evaluation.labels import Amount


@dataclass(frozen=True)
class Score:
    """The score of one encoder under one protocol.

    Attributes:
        encoder: its name.
        protocol: its name in ``evaluation.protocols``; ``supervised`` for the network trained from scratch.
        labels: amount of labels that the protocol was fitted to, see ``labels``.
        metrics: values of the metrics by name, as shares of 1; tables show the first.
        images: the labelled images that the amount comes to; None in scores of earlier versions.
    """

    encoder: str
    protocol: str
    labels: Amount
    metrics: dict[str, float]
    images: int | None = None


def largest_amount(scores: Sequence[Score]) -> Amount:
    """The amount of labels that comes to the most images."""
    return max(scores, key=lambda score: score.images or float(score.labels)).labels


#: Metrics whose titles are not their names.
TITLES = {"macro_roc_auc": "area under the ROC curve"}


def metric_title(name: str) -> str:
    """A metric in words.

    >>> metric_title("balanced_accuracy"), metric_title("macro_roc_auc")
    ('balanced accuracy', 'area under the ROC curve')
    """
    return TITLES.get(name, name.replace("_", " "))


#: References in a sentence.
PHRASES = {
    "untrained encoder": "an untrained encoder",
    "released encoder": "the released encoder",
    "majority class": "the majority class",
    "supervised from scratch": "the same network supervised from scratch",
}


def shown_first(metrics: dict[str, float], metric: str) -> dict[str, float]:
    """The metrics, with ``metric`` first if it is among them."""
    return {name: metrics[name] for name in sorted(metrics, key=lambda name: name != metric)}
