"""The identity instead of the inverse Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from multilevel.solvers.linear_system import LinearSystem, Solution
from multilevel.solvers.next_step import OneStepSolver


@dataclass
class Identity(OneStepSolver):
    """``x = scale * a``: a scaled identity instead of the inverse Hessian (Luketina et al. 2016).

    In training, an update ``p := p - rate dg/dp`` adds ``- rate d2g/dp dr`` to dp/dr, to first order in rate times
    curvature. Over the updates, a path through several levels has a weight: the product of their rates, times the
    number of ordered choices of one update of each level, each read by the next. With two updates of pretrain, then one
    of finetune, in each of N outer steps, there are 2 N choices on the direct path, and N (N + 1) through finetune.

    - ``scale=1``, as in Betty, omits rates and choices: every path has weight 1.
    - Another number gives a path through m levels the weight ``scale^m``. ``scale = 2 N rate`` is the direct path's
      weight over N outer steps.
    - ``scale=null`` gives every path its weight in one outer step (one update of the level whose hypergradient it is),
      or in ``outer_steps`` of them. x then comes from the derivative of the optimizer's next step in its gradient:
      ``rate a`` for plain SGD, ``rate D a`` with the D of ``sama`` for Adam, at the gradient of the last update.
      Dampening, Nesterov momentum and gradient clipping are part of that step; weight decay, and what the optimizer's
      state carries to later steps, are not.

    Assumes: a lower Hessian near a multiple of the identity, or an upper optimizer that uses only the direction.
    Costs: one mixed product; memory for one evaluation. With ``scale=null``, one more evaluation if the level
        clips its gradient, and one solve per path at a level that passes several on to lower levels.
    Use when: starting out, or as a baseline for better solvers. The default.

    Args:
        measure_residual: spend one product to report ``|H x - a| / |a|``, which is otherwise unknown.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4), the exact contribution is 1, 1/2, 1/4.

        >>> Identity().respond(lower, cotangent).contributions["upper"]["r"]
        tensor([1., 1., 1.])
        >>> Identity(scale=0.5).respond(lower, cotangent).contributions["upper"]["r"]
        tensor([0.5000, 0.5000, 0.5000])

        ``scale=None`` at a level trained with SGD at rate 0.1:

        >>> p = torch.zeros(3, requires_grad=True)
        >>> with_sgd = replace(lower, rule=UpdateRule.of(torch.optim.SGD([p], 0.1), {"p": p}))
        >>> Identity(scale=None).respond(with_sgd, cotangent).contributions["upper"]["r"]
        tensor([0.1000, 0.1000, 0.1000])
    """

    measure_residual: bool = field(default=False, kw_only=True)

    @property
    def nests(self) -> bool:
        return self.scale is not None

    def unscaled(self, system: LinearSystem) -> Tensor:
        return system.right_hand_side

    def solve(self, system: LinearSystem) -> Solution:
        x = self.scaled(system)
        if not self.measure_residual:
            return Solution(x)
        return Solution(x, system.residual(x), False, "the identity replaces the inverse Hessian")
