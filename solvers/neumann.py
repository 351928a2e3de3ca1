"""The inverse Hessian as a truncated Neumann series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.ranges import Count, NonNegative, PositiveNumber


@dataclass
class Neumann(ImplicitSolver):
    """``x = step_size * sum over k < terms of (I - step_size H)^k a`` (Lorraine et al. 2020, algorithm 3).

    With every term the residual falls by ``1 - step_size * smallest eigenvalue`` or better. A growing residual means
    too large a step or negative curvature; the solve then ends at the previous iterate.

    Assumes: a positive definite lower Hessian, damping included.
    Costs: one Hessian-vector product per term, plus ``power_iterations`` if it chooses the step.
    Use when: the lower level is well conditioned, or for a cheap, smooth improvement over the identity.

    Args:
        terms: number of terms, at least 1.
        step_size: factor of the series, below 2 / (largest eigenvalue); None takes 1 / (estimate of that eigenvalue).
        power_iterations: products for that estimate, at least 1.
        tolerance: relative residual at which the series ends early and counts as converged.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4), 1 / h becomes (1 - (1 - h / 4)^2) / h.

        >>> Neumann(terms=2, step_size=0.25).respond(lower, cotangent).contributions["upper"]["r"]
        tensor([0.4375, 0.3750, 0.2500])
    """

    terms: Count = 5
    step_size: PositiveNumber | None = None
    power_iterations: Count = 5
    tolerance: NonNegative = 1e-6

    def solve(self, system: LinearSystem) -> Solution:
        hessian, cotangent = system.product, system.right_hand_side
        step = self.step_size
        if step is None:
            largest = largest_eigenvalue(hessian, cotangent, self.power_iterations)
            if largest == 0:
                cause = "the Hessian maps the cotangent to 0: raise solver.damping"
                return Solution(cotangent, 1.0, False, cause, failed=True)
            step = 1 / largest
        scale = cotangent.norm().item()
        x, residual, relative = cotangent * 0, cotangent, 1.0
        for _ in range(self.terms):
            next_x = x + step * residual
            next_residual = cotangent - hessian(next_x)
            next_relative = next_residual.norm().item() / scale
            # "not <" catches nan; rounding lets a residual at the limit of the arithmetic rise by a little.
            if not next_relative < max(relative, self.tolerance) * 1.001:
                cause = (
                    f"the residual rose from {relative:.3g} to {next_relative:.3g} (negative curvature or too long a "
                    f"step of {step:.3g}): lower solver.step_size, raise solver.damping, or lower solver.terms"
                )
                return Solution(x, relative, False, cause, failed=True)
            x, residual, relative = next_x, next_residual, next_relative
            if relative <= self.tolerance:
                return Solution(x, relative, True)
        cause = f"residual {relative:.3g} after {self.terms} terms: raise solver.terms"
        return Solution(x, relative, False, cause)


def largest_eigenvalue(hessian: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> float:
    """Estimate by power iteration the largest eigenvalue, in absolute value, with a component in ``start`` [N].

    Starting from the right-hand side, the iteration sees the same spectrum as the series and needs no random vector.
    The estimate approaches from below.
    """
    vector, largest = start, 0.0
    for _ in range(iterations):
        norm = vector.norm()
        if not norm > 0:
            break
        vector = hessian(vector / norm)
        largest = max(largest, vector.norm().item())
    return largest
