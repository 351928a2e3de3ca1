"""Scores of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """The score of one encoder under one protocol.

    Attributes:
        encoder: its name.
        protocol: its name in ``evaluation.protocols``; ``supervised`` for the network trained from scratch.
        labels: share of the labelled training images that the protocol was fitted to.
        metrics: values of the metrics by name, as shares of 1; tables show the first.
    """

    encoder: str
    protocol: str
    labels: float
    metrics: dict[str, float]


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
