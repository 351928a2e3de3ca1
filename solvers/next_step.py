"""Solvers that put the level's next updates in place of the inverse Hessian."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multilevel.solvers.errors import SolveError
from multilevel.solvers.gradients import detached_leaves
from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem
from multilevel.solvers.products import ProductName
from multilevel.solvers.ranges import Count, PositiveNumber, require
from multilevel.solvers.update_rules import UpdateRule
from multilevel.solvers.vectors import Tensors, flatten, unflatten, zeros_like


@dataclass
class OneStepSolver(ImplicitSolver):
    """A solver that answers for the next updates of the levels: ``x`` is a multiple of the effect of one update.

    Args:
        scale: the multiple, above 0 (the inverse of the lower curvature if known); or None (``null``), the weight that
            training gives every path, see ``identity``: it needs plain SGD, Adam or AdamW, and levels that do not read
            each other.
        outer_steps: with ``scale=null``, the number of outer steps to count choices of updates in.
    """

    product: ProductName = field(default="auto", kw_only=True)
    scale: PositiveNumber | None = field(default=1.0, kw_only=True)
    outer_steps: Count = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        usable = self.outer_steps == 1 or self.scale is None
        require("solver.outer_steps", self.outer_steps, usable, "1, or solver.scale=null with it")

    @property
    def counted_outer_steps(self) -> int:
        return self.outer_steps if self.scale is None else 0

    @abstractmethod
    def unscaled(self, system: LinearSystem) -> Tensor:
        """``x`` [N] with a scale of 1."""

    def scaled(self, system: LinearSystem) -> Tensor:
        """``x`` [N]; with ``scale=None``, through the optimizer's own step."""
        if self.scale is None:
            return flatten(through_next_step(system, system.lower.gradient))
        x = self.unscaled(system)
        return x if self.scale == 1 else self.scale * x


def update_rule(system: LinearSystem) -> UpdateRule:
    """The rule of the lower level's next update; SolveError if the level has no differentiable optimizer."""
    if system.lower.rule is None:
        raise SolveError(
            f"level {system.lower.name!r}: sama and scale=null need plain SGD, Adam or AdamW; identity with a number "
            "as scale works with any optimizer"
        )
    return system.lower.rule


def through_next_step(system: LinearSystem, gradient: Tensors | None = None) -> dict[str, Tensor]:
    """Pull the cotangent back through the next step: ``- a . d(parameters after it) / d gradient``, for plain SGD the
    learning rate times a.

    Gradient clipping is part of the step; weight decay and the state carried to later steps are not. Costs one
    evaluation for the gradient, except where the step is linear in it, or ``gradient`` is given.

    Raises:
        SolveError: the lower level has no differentiable optimizer.
    """
    lower, rule = system.lower, update_rule(system)
    linear = rule.kind == "sgd" and rule.clip_norm is None
    if linear:
        gradient = zeros_like(lower.parameters)
    leaves = detached_leaves(system.products.gradient() if gradient is None else gradient)
    cotangent = unflatten(system.right_hand_side, lower.parameters)
    with torch.enable_grad():
        after, _ = rule.apply(lower.parameters, leaves, rule.state)
        slopes = torch.autograd.grad(list(after.values()), list(leaves.values()), list(cotangent.values()))
    return {name: -slope for name, slope in zip(leaves, slopes, strict=True)}
