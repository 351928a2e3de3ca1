"""Forward mode through the lower level's own updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.func import jvp

from multilevel.solvers.base import LowerLevel, Response, SolveReport, at_least
from multilevel.solvers.errors import SettingError
from multilevel.solvers.products import Products
from multilevel.solvers.unrolled import UnrolledSolver
from multilevel.solvers.update_rules import State
from multilevel.solvers.vectors import Tensors, flatten, zeros_like


@dataclass
class UnrolledForward(UnrolledSolver):
    """What ``unrolled`` computes, carried forward from the oldest update: one tangent for each upper parameter
    (Franceschi et al. 2017).

    Assumes: few parameters in the levels that the lower level reads.
    Costs: a product an update and upper parameter; no reverse sweep, memory of one tangent of parameters and state.
    Use when: a handful of hyperparameters, many updates.

    Args:
        limit: most upper parameters that it takes on.

    Raises:
        SettingError: the levels read have more parameters than the limit.
    """

    limit: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("limit", self.limit, 1)

    def through(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        count = sum(tensor.numel() for tensors in lower.reads.values() for tensor in tensors.values())
        if count > self.limit:
            raise SettingError(
                "solver.limit", self.limit, f"at least {count} for {count} upper parameters, or solver=unrolled"
            )
        steps = lower.steps[-self.steps :]
        spent = [self.products_of(step, lower) for step in steps]
        # Evaluated plainly: a product's own gradient may keep its graph.
        gradients = [Products.gradient(one) for one in spent]
        total = {level: zeros_like(tensors) for level, tensors in lower.reads.items()}
        for level, tensors in total.items():
            for name, tensor in tensors.items():
                for index in range(tensor.numel()):
                    direction = {other: zeros_like(some) for other, some in lower.reads.items()}
                    direction[level][name].view(-1)[index] = 1
                    tangent = zeros_like(lower.parameters)
                    held: State = {key: zeros_like(state) for key, state in steps[0].rule.state.items()}
                    for step, products, gradient in zip(steps, spent, gradients, strict=True):
                        slope = products.hessian(tangent, direction)
                        rule = step.rule
                        points = (dict(step.parameters), gradient, rule.state)
                        vectors = (tangent, slope, _matching(held, rule.state))
                        tangent, held = jvp(rule.apply, points, vectors)[1]
                    tensor.view(-1)[index] = flatten(cotangent).dot(flatten(tangent))
        return Response(total, SolveReport(sum(one.evaluations for one in spent), sum(one.products for one in spent)))


def _matching(tangents: State, state: State) -> State:
    """Tangents of exactly the state that there is, 0 where nothing has arrived."""
    return {
        name: {key: tangents.get(name, {}).get(key, torch.zeros_like(one)) for key, one in held.items()}
        for name, held in state.items()
    }
