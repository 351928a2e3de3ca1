"""The inverse Hessian by steepest descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.ranges import Count, NonNegative


@dataclass
class NewSolver(ImplicitSolver):
    """Solves ``(H + damping I) x = a`` by steepest descent with the optimal step length (Cauchy 1847).

    Assumes: a positive definite lower Hessian, damping included.
    Costs: one Hessian-vector product per iteration.
    Use when: writing your own solver, with this as its starting point (``conjugate_gradient`` needs fewer products).

    Args:
        iterations: largest number of iterations, at least 1.
        tolerance: relative residual at which the solve counts as converged.
    """

    iterations: Count = 20
    tolerance: NonNegative = 1e-6

    def solve(self, system: LinearSystem) -> Solution:
        # All parameters of the level are one vector [N]; system.product is (H + damping I) times such a vector.
        x, residual = torch.zeros_like(system.right_hand_side), system.right_hand_side
        scale, relative = residual.norm().item(), 1.0
        for _ in range(self.iterations):
            image = system.product(residual)
            curvature = residual.dot(image)
            if not curvature > 0:  # nan included
                return Solution(x, relative, False, "negative curvature: raise solver.damping", failed=True)
            step = residual.dot(residual) / curvature
            x, residual = x + step * residual, residual - step * image
            relative = residual.norm().item() / scale
            if relative <= self.tolerance:
                return Solution(x, relative, True)
        cause = f"residual {relative:.3g} after {self.iterations} iterations: raise solver.iterations"
        return Solution(x, relative, False, cause)
