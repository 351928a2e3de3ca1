"""The identity instead of the inverse Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field

from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.products import ProductName
from multilevel.solvers.ranges import PositiveNumber


@dataclass
class Identity(ImplicitSolver):
    """``x = scale * a``: a scaled identity instead of the inverse Hessian (Luketina et al. 2016).

    Assumes: a lower Hessian near a multiple of the identity, or an upper optimizer that uses only the direction.
    Costs: one mixed product; memory for one evaluation.
    Use when: starting out, or as a baseline for better solvers. The default.

    Args:
        scale: the multiple, above 0; use the inverse of the lower curvature if known.
        measure_residual: spend one product to report ``|H x - a| / |a|``, which is otherwise unknown.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4), the exact contribution is 1, 1/2, 1/4.

        >>> Identity().respond(lower, cotangent).contributions["upper"]["r"]
        tensor([1., 1., 1.])
        >>> Identity(scale=0.5).respond(lower, cotangent).contributions["upper"]["r"]
        tensor([0.5000, 0.5000, 0.5000])
    """

    product: ProductName = field(default="auto", kw_only=True)
    scale: PositiveNumber = field(default=1.0, kw_only=True)
    measure_residual: bool = field(default=False, kw_only=True)

    def solve(self, system: LinearSystem) -> Solution:
        x = system.right_hand_side if self.scale == 1 else self.scale * system.right_hand_side
        if not self.measure_residual:
            return Solution(x)
        return Solution(x, system.residual(x), False, "the identity replaces the inverse Hessian")
