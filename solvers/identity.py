"""The identity instead of the inverse Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field

from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.next_step import check_outer_steps, through_next_step
from multilevel.solvers.products import ProductName
from multilevel.solvers.ranges import Count, PositiveNumber
from multilevel.solvers.vectors import flatten


@dataclass
class Identity(ImplicitSolver):
    """``x = scale * a``: a scaled identity instead of the inverse Hessian (Luketina et al. 2016).

    In training, an update ``p := p - rate dg/dp`` adds ``- rate d2g/dp dr`` to dp/dr, to first order in rate times
    curvature. Over the updates, a path through several levels has a weight: the product of their rates, times the
    number of ordered choices of one update of each level, each read by the next. With two updates of pretrain, then one
    of finetune, in each of N outer steps, there are 2 N choices on the direct path, and N (N + 1) through finetune.

    - ``scale=1``, as in Betty, omits rates and choices: every path has weight 1.
    - Another number gives a path through m levels the weight ``scale^m``. ``scale = 2 N rate`` is the direct path's
      weight over N outer steps.
    - ``scale=null`` gives every path its weight in one outer step (one update of the level whose hypergradient it is),
      or in ``outer_steps`` of them.
      x then comes from the derivative of the optimizer's next step in its gradient: ``rate a`` for plain SGD, ``rate D
      a`` with the D of ``sama`` for Adam, at the gradient of the last update. Dampening, Nesterov momentum and gradient
      clipping are part of that step; weight decay, and what the optimizer's state carries to later steps, are not.

    Assumes: a lower Hessian near a multiple of the identity, or an upper optimizer that uses only the direction.
    Costs: one mixed product; memory for one evaluation. With ``scale=null``, one more evaluation if the level
        clips its gradient, and one solve per path at a level that passes several on to lower levels.
    Use when: starting out, or as a baseline for better solvers. The default.

    Args:
        scale: the multiple, above 0, the inverse of the lower curvature if known; or None (``null``), the weight of one
            outer step. None needs plain SGD, Adam or AdamW, and levels that do not read each other.
        outer_steps: with ``scale=null``, the number of outer steps to count choices in.
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

    product: ProductName = field(default="auto", kw_only=True)
    scale: PositiveNumber | None = field(default=1.0, kw_only=True)
    outer_steps: Count = field(default=1, kw_only=True)
    measure_residual: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_outer_steps(self.outer_steps, self.scale)

    @property
    def counted_outer_steps(self) -> int:
        return self.outer_steps if self.scale is None else 0

    @property
    def nests(self) -> bool:
        return self.scale is not None

    def solve(self, system: LinearSystem) -> Solution:
        if self.scale is None:
            x = flatten(through_next_step(system, system.lower.gradient))
        else:
            x = system.right_hand_side if self.scale == 1 else self.scale * system.right_hand_side
        if not self.measure_residual:
            return Solution(x)
        return Solution(x, system.residual(x), False, "the identity replaces the inverse Hessian")
