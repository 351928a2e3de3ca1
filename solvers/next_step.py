"""The derivative of the lower optimizer's next step, for solvers that put it in place of the inverse Hessian."""

from __future__ import annotations

import torch
from torch import Tensor

from multilevel.solvers.errors import SolveError
from multilevel.solvers.gradients import detached_leaves
from multilevel.solvers.linear_system import LinearSystem
from multilevel.solvers.ranges import require
from multilevel.solvers.update_rules import UpdateRule
from multilevel.solvers.vectors import Tensors, unflatten, zeros_like


def check_outer_steps(outer_steps: int, scale: float | None) -> None:
    """Raise SettingError for ``outer_steps`` beside a number as scale, which counts no updates."""
    require("solver.outer_steps", outer_steps, outer_steps == 1 or scale is None, "1, or solver.scale=null with it")


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
