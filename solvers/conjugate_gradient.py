"""The inverse Hessian by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch

from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.products import Products
from multilevel.solvers.ranges import Count, NonNegative, OneOf
from multilevel.solvers.vectors import Tensors


@dataclass
class ConjugateGradient(ImplicitSolver):
    """Solves ``(H + damping I) x = a`` by conjugate gradients (Hestenes and Stiefel 1952; Rajeswaran et al. 2019).

    Exact after as many iterations as the Hessian has distinct eigenvalues. Negative curvature ends the solve at the
    previous iterate.

    Assumes: a positive definite lower Hessian, damping included; or ``curvature=gauss_newton``, which is never
        negative.
    Costs: one Hessian-vector product per iteration, plus one with a warm start.
    Use when: the lower level is near a minimum and accuracy matters; with Gauss-Newton and damping, in deep networks.

    Args:
        iterations: largest number of iterations, at least 1.
        tolerance: relative residual at which the solve counts as converged.
        curvature: hessian, or gauss_newton (for levels that define outputs and criterion; safe even if the lower loss
            is not convex).
        warm_start: start from this level's last solution, which training keeps, instead of 0.

    Examples:
        The Hessian of ``LowerLevel``'s example, diag(1, 2, 4), has three distinct eigenvalues, so three iterations
        suffice.

        >>> response = ConjugateGradient(iterations=3).respond(lower, cotangent)
        >>> response.contributions["upper"]["r"], response.report.converged
        (tensor([1.0000, 0.5000, 0.2500]), True)
    """

    iterations: Count = 10
    tolerance: NonNegative = 1e-6
    curvature: Annotated[str, OneOf("hessian", "gauss_newton")] = "hessian"
    warm_start: bool = False

    @property
    def nests(self) -> bool:
        return self.curvature == "hessian"

    @property
    def keeps_solution(self) -> bool:
        return self.warm_start

    def curved(self, products: Products) -> Callable[[Tensors], Tensors]:
        return products.hessian if self.curvature == "hessian" else products.gauss_newton

    def solve(self, system: LinearSystem) -> Solution:
        cotangent = system.right_hand_side
        scale = cotangent.norm().item()
        x, residual, relative = torch.zeros_like(cotangent), cotangent, 1.0
        if self.warm_start and system.start is not None:
            warm = cotangent - system.product(system.start)
            if warm.norm().item() < scale:  # discard a start that is worse than 0
                x, residual, relative = system.start, warm, warm.norm().item() / scale
        if relative <= self.tolerance:
            return Solution(x, relative, True)
        direction, squared = residual, residual.dot(residual)
        limit = squared / torch.finfo(squared.dtype).eps
        for _ in range(self.iterations):
            product = system.product(direction)
            curvature = direction.dot(product)
            if not curvature > 0:
                cause = (
                    f"curvature {curvature.item():.3g} along a direction of the solve: raise solver.damping, "
                    "or use solver=minres"
                )
                return Solution(x, relative, False, cause, failed=True)
            length = squared / curvature
            next_residual = residual - length * product
            next_squared = next_residual.dot(next_residual)
            # In exact arithmetic the residual grows by at most the square root of the condition number.
            if not next_squared <= limit:
                cause = (
                    "the Hessian is singular along a direction of the solve: raise solver.damping, or use solver=minres"
                )
                return Solution(x, relative, False, cause, failed=True)
            x = x + length * direction
            direction = next_residual + (next_squared / squared) * direction
            residual, squared = next_residual, next_squared
            relative = squared.sqrt().item() / scale
            if relative <= self.tolerance:
                return Solution(x, relative, True)
        cause = f"residual {relative:.3g} after {self.iterations} iterations: raise solver.iterations"
        return Solution(x, relative, False, cause)
