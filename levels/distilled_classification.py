"""Levels: classification of images that another level learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multilevel.levels.classification import Classification, multilayer_perceptron
from multilevel.problems.levels import Levels

ITERATIONS = 100  # of L-BFGS at most


class LearnedImages(nn.Module):
    """Images as parameters; a call without arguments returns them, [N, C, H, W].

    Args:
        images: initial values, [N, C, H, W].
        classes: the class of each image, int64 [N]; fixed.
    """

    classes: Tensor

    def __init__(self, images: Tensor, classes: Tensor) -> None:
        super().__init__()
        self.images = nn.Parameter(images)
        self.register_buffer("classes", classes)

    def forward(self) -> Tensor:
        return self.images


class Classifier(nn.Module):
    """A classifier of images [B, ...], linear or with a hidden layer; see ``multilayer_perceptron``."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.network = multilayer_perceptron(inputs, width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def weights(self) -> list[Tensor]:
        """The matrices and biases of its layers."""
        return list(self.network.parameters())


class DistilledClassification(Classification):
    """``penalized_loss`` of a ``Classifier`` on all images of another level's ``LearnedImages``, without batches.

    Args:
        images: the level's name.
        penalty: see ``penalized_loss``.
    """

    def __init__(self, *arguments: Any, images: str, penalty: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.images, self.penalty = images, penalty

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> Any:
        """The logits [N, classes], and the classifier's weights."""
        classifier = getattr(levels, self.classifier)
        return [classifier(getattr(levels, self.images)()), *classifier.weights()]

    def criterion(self, outputs: Any, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        logits, *weights = outputs
        return penalized_loss(logits, getattr(levels, self.images).classes, weights, self.penalty), {}


def penalized_loss(logits: Tensor, classes: Tensor, weights: Sequence[Tensor], penalty: float) -> Tensor:
    """Cross-entropy plus half the penalty times the sum of squared weights, including biases.

    With a penalty above 0, a linear classifier has a unique minimum and no singular Hessian, even where its
    cross-entropy rounds to 0.
    """
    squares = torch.stack([weight.square().sum() for weight in weights])
    return F.cross_entropy(logits, classes) + penalty / 2 * squares.sum()


def fit_classifier(classifier: Classifier, images: Tensor, classes: Tensor, penalty: float) -> None:
    """Train to the minimum of ``penalized_loss`` on images [N, ...] by full-batch L-BFGS.

    A classifier with a hidden layer reaches a minimum near its initial weights.
    """
    device = next(classifier.parameters()).device
    images, classes = images.to(device), classes.to(device)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = penalized_loss(classifier(images), classes, classifier.weights(), penalty)
        value.backward()
        return value

    optimizer.step(loss)
