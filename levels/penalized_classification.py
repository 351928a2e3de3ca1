"""Levels: linear classification with a learned L2 penalty for each weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from multilevel.levels.classification import Classification
from multilevel.problems.levels import Levels


class PenalizedClassification(Classification):
    """Cross-entropy of a linear classifier, plus half the sum of its squared weights times their penalties.

    The module is an ``nn.Linear``; its bias has no penalty; batches are (inputs [B, inputs], classes int64 [B]).

    Args:
        penalties: name of the level whose module gives the penalties [classes, inputs].
    """

    def __init__(self, *arguments: Any, penalties: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.penalties = penalties

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> Any:
        """The logits [B, classes] and the weights [classes, inputs]; the loss is convex in both."""
        classifier = getattr(levels, self.classifier)
        return [classifier(batch[0]), classifier.weight]

    def criterion(self, outputs: Any, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        logits, weights = outputs
        loss, metrics = super().criterion(logits, levels, batch, draws)
        return loss + penalty(weights, getattr(levels, self.penalties)()), metrics


def penalty(weights: Tensor, penalties: Tensor) -> Tensor:
    """Half the sum of squared weights [classes, inputs], each times its penalty (of a shape that broadcasts)."""
    return (penalties * weights.square()).sum() / 2


def fit_penalized(inputs: Tensor, classes: Tensor, penalties: Tensor, tolerance: float = 1e-4) -> tuple[nn.Linear, int]:
    """Fit the linear classifier of least loss for given penalties, by scipy's L-BFGS in float64 on the CPU.

    Args:
        inputs: [N, inputs].
        classes: int64 [N], from 0 to the number of classes minus 1.
        penalties: [classes, inputs], above 0.
        tolerance: largest entry of the final gradient.

    Returns:
        The classifier, float64, and the number of evaluations of the loss and its gradient.
    """
    inputs, penalties = inputs.double().cpu(), penalties.detach().double().cpu()
    classifier = nn.Linear(penalties.shape[1], penalties.shape[0], dtype=torch.float64)
    parameters = list(classifier.parameters())

    def loss_and_gradient(values: Any) -> tuple[float, Any]:
        nn.utils.vector_to_parameters(torch.from_numpy(values).clone(), parameters)
        loss = F.cross_entropy(classifier(inputs), classes) + penalty(classifier.weight, penalties)
        gradient = torch.autograd.grad(loss, parameters)
        return loss.item(), nn.utils.parameters_to_vector(gradient).numpy()

    start = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": 10_000, "maxfun": 10_000}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads make such small products seven times slower
    try:
        minimum = minimize(loss_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    finally:
        torch.set_num_threads(threads)
    nn.utils.vector_to_parameters(torch.from_numpy(minimum.x), parameters)
    return classifier, minimum.nfev
