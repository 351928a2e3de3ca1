"""An update of one level: its optimizer's step along a hypergradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multilevel.problems.errors import NotFiniteError
from multilevel.problems.problem import Problem


def set_gradient(problem: Problem, gradient: dict[str, Tensor]) -> float:
    """Have the optimizer step along ``gradient``, clipped; returns its norm before that.

    Raises:
        NotFiniteError: the norm is not finite.
    """
    assert problem.optimizer is not None
    parameters = problem.variables()
    problem.optimizer.zero_grad(set_to_none=True)
    for key, value in gradient.items():
        parameters[key].grad = value
    limit = float("inf") if problem.clip_norm is None else problem.clip_norm
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), limit).item()
    if not math.isfinite(norm):
        problem.optimizer.zero_grad(set_to_none=True)
        raise NotFiniteError(
            f"the hypergradient of level {problem.name!r} has norm {norm}: lower learning rates, clip gradients, "
            "or take another solver"
        )
    return norm


def take_step(problem: Problem) -> None:
    """Let the optimizer, and the scheduler, take their step."""
    assert problem.optimizer is not None
    problem.optimizer.step()
    problem.optimizer.zero_grad(set_to_none=True)
    if problem.scheduler is not None:
        problem.scheduler.step()
