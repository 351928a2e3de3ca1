"""Levels: classification with equal sample weights, or with weights that another level learns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class Classification(Problem):
    """Cross-entropy of a classifier. Batches are (inputs [B, ...], classes int64 [B], ...).

    Args:
        classifier: name of the level with the classifier; None: this level.
    """

    def __init__(self, *arguments: Any, classifier: str | None = None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.classifier = classifier or self.name

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> Tensor:
        """The logits [B, classes]."""
        return getattr(levels, self.classifier)(batch[0])

    def criterion(self, outputs: Tensor, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        correct = (outputs.argmax(1) == batch[1]).float().mean()
        return F.cross_entropy(outputs, batch[1]), {"accuracy": correct}


class WeightedClassification(Classification):
    """Cross-entropy with a weight for each sample from another level.

    Batches are (inputs [B, ...], classes int64 [B], sample indices int64 [B]).

    Args:
        weights: name of the level whose module maps sample indices [B] to weights [B].
    """

    def __init__(self, *arguments: Any, weights: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.weights = weights

    def criterion(self, outputs: Tensor, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = F.cross_entropy(outputs, batch[1], reduction="none")
        return (getattr(levels, self.weights)(batch[2]) * losses).mean(), {}


def multilayer_perceptron(inputs: int, width: int, classes: int) -> nn.Sequential:
    """A classifier of inputs [B, ...] with one hidden layer, or a linear classifier if ``width`` is 0."""
    hidden = [nn.Linear(inputs, width), nn.GELU()] if width else []
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width or inputs, classes))


def accuracy(classifier: nn.Module, inputs: Tensor, classes: Tensor) -> float:
    """The share of inputs [N, ...] that a classifier assigns to their classes (int64 [N]).

    The classifier is called in its current mode on its own device; call ``eval`` first if it has dropout or similar
    layers.
    """
    device = next(classifier.parameters()).device
    with torch.no_grad():
        return float((classifier(inputs.to(device)).argmax(1).cpu() == classes).double().mean())
