"""The exact inverse Hessian, by forming the Hessian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.ranges import Count, NonNegative, require


@dataclass
class Dense(ImplicitSolver):
    """Forms ``H + damping I`` column by column and solves exactly, in the precision of the parameters.

    Half precision is solved in float32. If the matrix is singular (such as for a parameter that the loss does not use),
    x is the solution of least residual and norm.

    Assumes: few parameters; a Hessian of any sign.
    Costs: one Hessian-vector product per parameter, and memory for the square of their number.
    Use when: the lower level has hundreds of parameters (a head, hyperparameters), or as a reference to compare with.

    Args:
        limit: largest number of parameters to accept.
        tolerance: relative residual at which the solve counts as converged.

    Raises:
        SettingError: the level has more parameters than the limit.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4):

        >>> Dense().respond(lower, cotangent).contributions["upper"]["r"]
        tensor([1.0000, 0.5000, 0.2500])
    """

    limit: Count = 2000
    tolerance: NonNegative = 1e-5

    def solve(self, system: LinearSystem) -> Solution:
        cotangent = system.right_hand_side
        count = len(cotangent)
        remedy = f"at least {count} for a lower level of {count} parameters, or another solver than dense"
        require("solver.limit", self.limit, count <= self.limit, remedy)
        matrix = cotangent.new_empty(count, count)
        unit = torch.zeros_like(cotangent)
        for index in range(count):
            unit[index] = 1
            matrix[:, index] = system.product(unit)
            unit[index] = 0
        matrix = (matrix + matrix.T) / 2
        if not torch.isfinite(matrix).all():
            return Solution(torch.zeros_like(cotangent), 1.0, False, "the Hessian is not finite", failed=True)
        x = smallest_solution(matrix, cotangent)
        residual = ((matrix @ x - cotangent).norm() / cotangent.norm()).item()
        met = residual <= self.tolerance
        cause = "" if met else f"residual {residual:.3g}: the Hessian is singular or nearly so, raise solver.damping"
        return Solution(x, residual, met, cause, failed=not met)


def smallest_solution(matrix: Tensor, right_hand_side: Tensor) -> Tensor:
    """The x [N] of least residual, and then of least norm, for a symmetric matrix [N, N].

    Eigenvalues below the rounding error of the largest count as 0.
    """
    values, vectors = torch.linalg.eigh(matrix)
    noise = 4 * len(values) ** 0.5 * torch.finfo(matrix.dtype).eps * values.abs().max()
    if (values.abs() > noise).all():
        return torch.linalg.solve(matrix, right_hand_side)  # more accurate if the matrix is not singular
    inverse = torch.where(values.abs() > noise, 1 / values, 0.0)
    return vectors @ (inverse * (vectors.T @ right_hand_side))
