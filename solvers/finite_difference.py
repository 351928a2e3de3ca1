"""Identity in place of the inverse Hessian, finite differences in place of second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from multilevel.solvers.base import ImplicitSolver, Solution
from multilevel.solvers.errors import SettingError


@dataclass
class FiniteDifference(ImplicitSolver):
    """The cheapest solver: ``x = a``, and the mixed product as a central difference of two gradients.

    The scheme of DARTS (Liu et al. 2019, equation 8), Betty's ``darts``. Right up to scale where the lower
    Hessian is near a multiple of the identity; its direction is what counts under an adaptive optimizer.
    Costs two evaluations of the lower level's loss, and only what the levels read need is kept for backward.

    Args:
        measure_residual: spend one more product to report ``|a - H a| / |a|``; it is not known otherwise.
    """

    product: str = field(default="finite_difference", kw_only=True)
    measure_residual: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.product != "finite_difference":
            raise SettingError("solver.product", self.product, "finite_difference, which this solver stands for")

    def solve(self, hessian: Callable[[Tensor], Tensor], cotangent: Tensor) -> Solution:
        if not self.measure_residual:
            return Solution(cotangent)
        residual = ((hessian(cotangent) - cotangent).norm() / cotangent.norm()).item()
        return Solution(cotangent, residual, converged=False, cause="the identity stands in for the inverse Hessian")
