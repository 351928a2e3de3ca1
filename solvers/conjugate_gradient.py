"""The inverse Hessian by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from multilevel.solvers.base import ImplicitSolver, Solution, at_least


@dataclass
class ConjugateGradient(ImplicitSolver):
    """Solves ``(H + damping I) x = a`` by conjugate gradients (Hestenes and Stiefel 1952; Rajeswaran et al. 2019).

    For a positive definite lower Hessian, exact after as many iterations as it has distinct eigenvalues. Costs
    one Hessian-vector product an iteration. Negative curvature ends the solve with the iterate before it.

    Args:
        iterations: largest number of iterations, at least 1.
        tolerance: relative residual at which the solve counts as converged.
    """

    iterations: int = 10
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("iterations", self.iterations, 1)
        at_least("tolerance", self.tolerance, 0)

    def solve(self, hessian: Callable[[Tensor], Tensor], cotangent: Tensor) -> Solution:
        scale = cotangent.norm().item()
        x, residual, direction = cotangent * 0, cotangent, cotangent
        squared = residual.dot(residual)
        relative = 1.0
        for _ in range(self.iterations):
            product = hessian(direction)
            curvature = direction.dot(product)
            if not curvature > 0:
                cause = f"curvature {curvature.item():.3g} along a direction of the solve: raise solver.damping"
                return Solution(x, relative, False, cause, failed=True)
            length = squared / curvature
            next_residual = residual - length * product
            next_squared = next_residual.dot(next_residual)
            if not next_squared.isfinite():
                return Solution(x, relative, False, "the solve overflowed: raise solver.damping", failed=True)
            x = x + length * direction
            direction = next_residual + (next_squared / squared) * direction
            residual, squared = next_residual, next_squared
            relative = squared.sqrt().item() / scale
            if relative <= self.tolerance:
                return Solution(x, relative, True)
        cause = f"residual {relative:.3g} after {self.iterations} iterations: raise solver.iterations"
        return Solution(x, relative, False, cause)
