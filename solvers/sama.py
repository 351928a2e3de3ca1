"""The lower optimizer's adaptive step instead of the inverse Hessian."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from multilevel.solvers.linear_system import LinearSystem, Solution
from multilevel.solvers.next_step import OneStepSolver, through_next_step, update_rule
from multilevel.solvers.vectors import flatten


@dataclass
class Sama(OneStepSolver):
    """``x = scale * D a``, where D is the derivative of the lower optimizer's next step with respect to its gradient,
    divided by the learning rate.

    The identity approximation for the fixed point of the lower level's optimizer (Choe et al. 2023, SAMA). For Adam and
    AdamW, D is diagonal; for SGD it is the identity.

    ``scale`` means what it does for ``identity``. An update changes dp/dr by ``- rate D d2g/dp dr``, to first order in
    rate times curvature: ``scale=1`` omits rates and choices of updates, a number gives a path through m levels the
    weight ``scale^m`` in place of both, and ``scale=null`` has ``x = rate D a`` and counts the choices in one outer
    step, the same as ``identity`` with ``scale=null``.

    Assumes: the same as ``identity``, in the geometry of the lower level's optimizer (SGD, Adam or AdamW).
    Costs: one evaluation for the gradient, one mixed product.
    Use when: the lower level trains with Adam and the solve must be as cheap as ``identity``.

    Raises:
        SolveError: the lower level is trained with another optimizer.

    Examples:
        If the level of ``LowerLevel``'s example is trained with SGD, the result is the same as with ``identity``.

        >>> p = torch.zeros(3, requires_grad=True)
        >>> with_sgd = replace(lower, rule=UpdateRule.of(torch.optim.SGD([p]), {"p": p}))
        >>> Sama().respond(with_sgd, cotangent).contributions["upper"]["r"]
        tensor([1., 1., 1.])
    """

    @property
    def nests(self) -> bool:
        return False

    def unscaled(self, system: LinearSystem) -> Tensor:
        rule = update_rule(system)
        if rule.kind == "sgd":
            return system.right_hand_side
        rates = {name: group["lr"] for name, group in rule.settings.items()}
        step = through_next_step(system)
        return flatten({name: value / rates[name] if rates[name] else value for name, value in step.items()})

    def solve(self, system: LinearSystem) -> Solution:
        return Solution(self.scaled(system))
