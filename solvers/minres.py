"""The inverse Hessian by MINRES, for indefinite Hessians."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.ranges import Count, NonNegative


@dataclass
class Minres(ImplicitSolver):
    """The x of least residual ``|(H + damping I) x - a|`` in the Krylov space (Paige and Saunders 1975).

    The residual never rises, whatever the signs of the eigenvalues.

    Assumes: a symmetric Hessian, definite or not.
    Costs: one Hessian-vector product per iteration.
    Use when: the lower loss is not convex at the current point, or as a reference with many iterations.

    Args:
        iterations: largest number of iterations, at least 1.
        tolerance: relative residual at which the solve counts as converged.
        measure_residual: spend one product to report the true residual. The recurrence's residual, reported otherwise,
            is too small if rounding errors accumulate (many iterations, an ill-conditioned Hessian).

    Examples:
        With its loss negated, the level of ``LowerLevel``'s example has no positive eigenvalue, and the same stationary
        point.

        >>> concave = replace(lower, losses=[lambda parameters, reads: -loss(parameters, reads)])
        >>> Minres().respond(concave, cotangent).contributions["upper"]["r"]
        tensor([1.0000, 0.5000, 0.2500])
    """

    iterations: Count = 10
    tolerance: NonNegative = 1e-6
    measure_residual: bool = False

    def solve(self, system: LinearSystem) -> Solution:
        solution = self._iterate(system)
        if not self.measure_residual:
            return solution
        residual = system.residual(solution.x)
        met = residual <= self.tolerance
        cause = solution.cause or ("" if met else f"residual {residual:.3g} for rounding: raise solver.damping")
        return Solution(solution.x, residual, met, cause, solution.failed)

    def _iterate(self, system: LinearSystem) -> Solution:
        cotangent = system.right_hand_side
        scale = cotangent.norm()
        # Lanczos vectors, and the last two columns of the QR factors of the tridiagonal matrix.
        before, vector, off_diagonal = torch.zeros_like(cotangent), cotangent / scale, torch.zeros_like(scale)
        older, old = torch.zeros_like(cotangent), torch.zeros_like(cotangent)
        cosines, sines = (1.0, 1.0), (0.0, 0.0)
        x, last, largest = torch.zeros_like(cotangent), scale.item(), 0.0
        relative = 1.0
        for _ in range(self.iterations):
            product = system.product(vector)
            diagonal = vector.dot(product)
            product = product - diagonal * vector - off_diagonal * before
            following = product.norm()
            if not following.isfinite():
                return Solution(x, relative, False, "the solve overflowed: raise solver.damping", failed=True)
            epsilon = sines[0] * off_diagonal.item()
            middle = cosines[0] * off_diagonal.item()
            delta = cosines[1] * middle + sines[1] * diagonal.item()
            gamma = cosines[1] * diagonal.item() - sines[1] * middle
            length = (gamma**2 + following.item() ** 2) ** 0.5
            largest = max(largest, length)
            if length <= 100 * torch.finfo(cotangent.dtype).eps * largest:
                break  # the Hessian is singular along the rest: no x lowers the residual
            cosine, sine = gamma / length, following.item() / length
            older, old = old, (vector - delta * old - epsilon * older) / length
            x = x + cosine * last * old
            last = -sine * last
            relative = abs(last) / scale.item()
            if relative <= self.tolerance:
                return Solution(x, relative, True)
            before, vector, off_diagonal = vector, product / following, following
            cosines, sines = (cosines[1], cosine), (sines[1], sine)
        cause = f"residual {relative:.3g} after {self.iterations} iterations: raise solver.iterations"
        return Solution(x, relative, False, cause)
