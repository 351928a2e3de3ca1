"""The lower optimizer's adaptive step instead of the inverse Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from multilevel.solvers.errors import SolveError
from multilevel.solvers.gradients import detached_leaves
from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.products import ProductName
from multilevel.solvers.vectors import flatten, unflatten


@dataclass
class Sama(ImplicitSolver):
    """``x = D a``, where D is the derivative of the lower optimizer's next step with respect to its gradient, divided
    by the learning rate.

    The identity approximation for the fixed point of the lower level's optimizer (Choe et al. 2023, SAMA). For Adam and
    AdamW, D is diagonal; for SGD it is the identity.

    Assumes: the same as ``identity``, in the geometry of the lower level's optimizer (SGD, Adam or AdamW).
    Costs: one evaluation for the gradient, one mixed product.
    Use when: the lower level trains with Adam and the solve must be as cheap as ``identity``.

    Examples:
        If the level of ``LowerLevel``'s example is trained with SGD, the result is the same as with ``identity``.

        >>> p = torch.zeros(3, requires_grad=True)
        >>> with_sgd = replace(lower, rule=UpdateRule.of(torch.optim.SGD([p]), {"p": p}))
        >>> Sama().respond(with_sgd, cotangent).contributions["upper"]["r"]
        tensor([1., 1., 1.])
    """

    product: ProductName = field(default="auto", kw_only=True)

    @property
    def nests(self) -> bool:
        return False

    def solve(self, system: LinearSystem) -> Solution:
        lower, cotangent = system.lower, system.right_hand_side
        rule = lower.rule
        if rule is None:
            raise SolveError("solver=sama needs a lower level trained with SGD, Adam or AdamW; identity works with any")
        if rule.kind == "sgd":
            return Solution(cotangent)
        gradient = detached_leaves(system.products.gradient())
        with torch.enable_grad():
            after, _ = rule.apply(lower.parameters, gradient, rule.state)
            vectors = unflatten(cotangent, lower.parameters)
            slopes = torch.autograd.grad(list(after.values()), list(gradient.values()), list(vectors.values()))
        rates = [rule.settings[name]["lr"] for name in lower.parameters]
        scaled = {
            name: -slope / rate if rate else torch.zeros_like(slope)
            for name, slope, rate in zip(gradient, slopes, rates, strict=True)
        }
        return Solution(flatten(scaled))
