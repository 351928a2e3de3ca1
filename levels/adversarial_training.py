"""Levels: perturb inputs, classify perturbed inputs, and choose the classifier's regularization."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class Perturbations(nn.Module):
    """A perturbation of each of N samples, initially 0: sample indices int64 [B] to [B, ...].

    Args:
        inputs: the samples [N, ...].
    """

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros_like(inputs))

    def forward(self, samples: Tensor) -> Tensor:
        return self.values[samples]


class Adversary(Problem):
    """Raises the classifier's loss minus a penalty on the perturbation; summed over samples.

    Each sample's perturbation d maximizes ``cross_entropy(x + d) - penalty / 2 |d|^2``, which is strongly concave if
    the penalty exceeds the curvature of the cross-entropy (Sinha et al. 2018). Batches are (inputs [B, ...], classes
    int64 [B], which samples int64 [B]).

    Args:
        penalty: factor of the squared distance, above 0.
        classifier: name of the level with the classifier; this level's module is ``Perturbations``.
    """

    def __init__(self, *arguments: Any, penalty: float, classifier: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.penalty, self.classifier = penalty, classifier

    def loss(self, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, classes, samples = batch
        perturbations = getattr(levels, self.name)(samples)
        gain = F.cross_entropy(getattr(levels, self.classifier)(inputs + perturbations), classes, reduction="sum")
        squares = perturbations.flatten(1).square().sum(1)
        return self.penalty / 2 * squares.sum() - gain, {"distance": squares.detach().sqrt().mean()}


class RobustClassification(Problem):
    """Mean cross-entropy of a linear classifier on perturbed inputs, plus half the decay times its squared weights.

    Batches are (inputs [B, ...], classes int64 [B], which samples int64 [B]).

    Args:
        adversary: name of the level with ``Perturbations``; None leaves the inputs unchanged.
        decay: name of the level with the decay, a ``Positive`` number, or the decay itself. This level's module is a
            ``LinearClassifier``.
    """

    def __init__(self, *arguments: Any, adversary: str | None, decay: str | float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.adversary, self.decay = adversary, decay

    def loss(self, levels: Levels, batch: Any, draws: Any) -> Tensor:
        inputs, classes, samples = batch
        classifier = getattr(levels, self.name)
        if self.adversary is not None:
            inputs = inputs + getattr(levels, self.adversary)(samples)
        decay = getattr(levels, self.decay)() if isinstance(self.decay, str) else self.decay
        return F.cross_entropy(classifier(inputs), classes) + decay / 2 * classifier.linear.weight.square().sum()


class RobustSelection(Problem):
    """Mean cross-entropy on unperturbed inputs plus mean cross-entropy on perturbed inputs.

    Batches are (inputs [B, ...], classes int64 [B], which samples int64 [B]).

    Args:
        classifier: name of the level with the classifier.
        adversary: name of the level with ``Perturbations``; this level's module is the decay, a ``Positive`` number.
    """

    panels = MappingProxyType({"loss": ("loss", "clean", "robust")})

    def __init__(self, *arguments: Any, classifier: str, adversary: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.classifier, self.adversary = classifier, adversary

    def loss(self, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        clean, robust = selection_losses(getattr(levels, self.classifier), getattr(levels, self.adversary), *batch)
        decay = getattr(levels, self.name)().detach()
        return clean + robust, {"clean": clean.detach(), "robust": robust.detach(), "decay": decay}


def selection_losses(
    classifier: Callable[[Tensor], Tensor],
    perturbations: Callable[[Tensor], Tensor],
    inputs: Tensor,
    classes: Tensor,
    samples: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy on a batch's unperturbed inputs, and on its perturbed inputs."""
    clean = F.cross_entropy(classifier(inputs), classes)
    return clean, F.cross_entropy(classifier(inputs + perturbations(samples)), classes)


class LinearClassifier(nn.Module):
    """Logits [B, classes] of inputs [B, ...], linear in them; all weights start at 0."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs.flatten(1))

    @torch.no_grad()
    def distances(self, inputs: Tensor, classes: Tensor) -> Tensor:
        """Euclidean distance [N] from each input [N, ...] of a class (int64 [N]) to the nearest region of another
        class; not above 0 if the input is misclassified."""
        logits, weight = self(inputs), self.linear.weight
        margins = logits.gather(1, classes[:, None]) - logits
        lengths = (weight[classes][:, None] - weight).norm(dim=2)
        return (margins / lengths).scatter(1, classes[:, None], torch.inf).amin(1)
