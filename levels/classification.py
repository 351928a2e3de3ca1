"""Levels: classify, with samples of equal weight, or of weights that another level learns."""

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
        classifier: name of the level that holds it; None: this one.
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
    """Cross-entropy in which another level gives each sample a weight.

    Batches are (inputs [B, ...], classes int64 [B], which samples int64 [B]).

    Args:
        weights: name of the level whose module maps which samples they are [B] to their weights [B].
    """

    def __init__(self, *arguments: Any, weights: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.weights = weights

    def criterion(self, outputs: Tensor, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = F.cross_entropy(outputs, batch[1], reduction="none")
        return (getattr(levels, self.weights)(batch[2]) * losses).mean(), {}


def multilayer_perceptron(inputs: int, width: int, classes: int) -> nn.Sequential:
    """A classifier of inputs [B, ...] with one hidden layer; without one, a linear one, where ``width`` is 0."""
    hidden = [nn.Linear(inputs, width), nn.GELU()] if width else []
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width or inputs, classes))


def accuracy(classifier: nn.Module, inputs: Tensor, classes: Tensor) -> float:
    """Share of the inputs [N, ...] that a classifier assigns to their class (int64 [N]).

    It is called as it stands, on its own device; with dropout and similar layers call ``eval`` before.
    """
    device = next(classifier.parameters()).device
    with torch.no_grad():
        return float((classifier(inputs.to(device)).argmax(1).cpu() == classes).double().mean())
