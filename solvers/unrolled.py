"""Reverse mode through the lower level's own updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multilevel.solvers.base import (
    LowerLevel,
    Response,
    Solver,
    SolveReport,
    Step,
    at_least,
)
from multilevel.solvers.errors import SettingError, SolveError
from multilevel.solvers.products import PRODUCTS, Products
from multilevel.solvers.update_rules import State
from multilevel.solvers.vectors import Tensors, zeros_like


@dataclass
class UnrolledSolver(Solver):
    """Differentiates the last updates of the lower level instead of its minimum.

    Args:
        steps: updates to go through, at least 1: the last ones since the top level's last update, fewer where
            there have been fewer.
        product: how the products of each update are formed: reverse, forward or finite_difference.
        radius: norm of a finite difference's perturbation; None chooses it.
    """

    steps: int = 5
    product: str = field(default="reverse", kw_only=True)
    radius: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        if self.product not in PRODUCTS:
            raise SettingError("solver.product", self.product, f"one of {', '.join(PRODUCTS)}")
        if self.radius is not None and not self.radius > 0:
            raise SettingError("solver.radius", self.radius, "a number above 0, or null to have it chosen")

    @property
    def recorded_steps(self) -> int:
        return self.steps

    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        if not lower.steps:
            raise SolveError(
                "there is no update of the lower level to go through: train a step first (with SGD, Adam or AdamW)"
            )
        return self.through(lower, cotangent)

    @abstractmethod
    def through(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        """``respond`` for a level with recorded steps and a cotangent that is not 0."""

    def products_of(self, step: Step, lower: LowerLevel) -> Products:
        reads = {level: step.reads[level] for level in lower.reads}
        at_step = LowerLevel(step.losses, step.parameters, reads, lower.arithmetic)
        return PRODUCTS[self.product](at_step, self.radius)


@dataclass
class Unrolled(UnrolledSolver):
    """The derivative of the lower parameters as their last ``steps`` updates made them (Franceschi et al. 2017;
    truncated: Shaban et al. 2019).

    Each update is recorded with what it started from, so that one at a time is differentiated and the memory does not
    grow with activations of several. Differentiates SGD (momentum, Nesterov, weight decay), Adam and AdamW, gradient
    clipping included, and the optimizer's state.

    Assumes: nothing of the lower Hessian; that the updates recorded are those that matter. What a level reads of
        levels below it counts as if it had read their last values at every one of them.
    Costs: an evaluation, a Hessian-vector and a mixed product an update; memory of ``steps`` copies of parameters and
        optimizer state.
    Use when: the lower level is far from its minimum, or its optimizer's path is part of the problem (MAML).
    """

    def through(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        after: dict[str, Tensor] = dict(cotangent)
        after_state: State = {}
        total = {level: zeros_like(tensors) for level, tensors in lower.reads.items()}
        evaluations = count = 0
        for step in reversed(lower.steps[-self.steps :]):
            products = self.products_of(step, lower)
            gradient = products.gradient()
            own, pulled, own_state = _pulled_back(step, gradient, after, after_state)
            curved, mixed = products.hessian(pulled), products.mixed(pulled)
            after = {name: own[name] + curved[name] for name in own}
            after_state = own_state
            total = {
                level: {name: value + mixed[level][name] for name, value in tensors.items()}
                for level, tensors in total.items()
            }
            evaluations, count = evaluations + products.evaluations, count + products.products
        return Response(total, SolveReport(evaluations, count))


def _pulled_back(
    step: Step, gradient: Tensors, after: Tensors, after_state: State
) -> tuple[dict[str, Tensor], dict[str, Tensor], State]:
    """Cotangents of an update's parameters, gradient and state, from those of what it made."""
    parameters, slopes = (
        {name: one.detach().requires_grad_() for name, one in some.items()} for some in (step.parameters, gradient)
    )
    state = {
        name: {key: one.detach().requires_grad_() for key, one in held.items()}
        for name, held in step.rule.state.items()
    }
    with torch.enable_grad():
        made, made_state = step.rule.apply(parameters, slopes, state)
    pairs = list(_pairs(made, after)) + [
        pair for name, held in after_state.items() for pair in _pairs(made_state[name], held)
    ]
    inputs = [*parameters.values(), *slopes.values(), *(one for held in state.values() for one in held.values())]
    found = iter(
        torch.autograd.grad([one for one, _ in pairs], inputs, [one for _, one in pairs], materialize_grads=True)
    )
    own, pulled = ({name: next(found) for name in some} for some in (parameters, slopes))
    return own, pulled, {name: {key: next(found) for key in held} for name, held in state.items()}


def _pairs(outputs: Tensors, cotangents: Tensors) -> Iterator[tuple[Tensor, Tensor]]:
    for name, output in outputs.items():
        if name in cotangents and output.requires_grad:
            yield output, cotangents[name]
