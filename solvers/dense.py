"""The inverse Hessian exactly, by writing the Hessian down."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from multilevel.solvers.base import ImplicitSolver, LinearSystem, Solution, at_least
from multilevel.solvers.errors import SettingError


@dataclass
class Dense(ImplicitSolver):
    """Forms ``H + damping I`` column by column and solves exactly, in the parameters' precision.

    Assumes: few parameters; a Hessian that is not singular, of any sign.
    Costs: a Hessian-vector product a parameter, and memory of the square of their number.
    Use when: the lower level has hundreds of parameters (a head, hyperparameters), or as the truth to compare with.

    Args:
        limit: most parameters that it takes on.
        tolerance: relative residual at which the solve counts as converged.

    Raises:
        SettingError: the level has more parameters than the limit.
    """

    limit: int = 2000
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("limit", self.limit, 1)
        at_least("tolerance", self.tolerance, 0)

    def solve(self, system: LinearSystem) -> Solution:
        cotangent = system.right_hand_side
        count = len(cotangent)
        if count > self.limit:
            raise SettingError(
                "solver.limit",
                self.limit,
                f"at least {count} for a lower level of {count} parameters, or a solver that is not dense",
            )
        matrix = cotangent.new_empty(count, count)
        unit = torch.zeros_like(cotangent)
        for index in range(count):
            unit[index] = 1
            matrix[:, index] = system.product(unit)
            unit[index] = 0
        matrix = (matrix + matrix.T) / 2
        x, status = torch.linalg.solve_ex(matrix, cotangent)
        if status.item() != 0 or not torch.isfinite(x).all():
            cause = "the Hessian is singular: raise solver.damping"
            return Solution(torch.zeros_like(cotangent), 1.0, False, cause, failed=True)
        residual = ((matrix @ x - cotangent).norm() / cotangent.norm()).item()
        met = residual <= self.tolerance
        cause = "" if met else f"residual {residual:.3g}: the Hessian is nearly singular, raise solver.damping"
        return Solution(x, residual, met, cause)
