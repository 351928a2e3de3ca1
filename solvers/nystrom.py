"""The inverse Hessian by a low-rank Nystrom approximation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel.solvers.linear_system import ImplicitSolver, LinearSystem, Solution
from multilevel.solvers.ranges import Count, NonNegative


@dataclass
class Nystrom(ImplicitSolver):
    """``x = (H_k + damping I)^-1 a``, H_k a rank-k approximation from k products (Hataya and Yamada 2023).

    H is sketched along k random orthonormal directions S, ``H_k = H S (S' H S)^-1 S' H``, with a small shift of H that
    is subtracted from the eigenvalues again (as in Frangella et al. 2023, algorithm 2.1). Exact if k is at least the
    rank of H. Without damping, components outside the sketch count as 0. A result with a larger residual than x = 0
    counts as failed.

    Assumes: a quickly decaying spectrum; damping of about the size of the eigenvalues beyond the rank.
    Costs: ``rank`` Hessian-vector products at any condition number, one for the residual, memory for ``rank`` vectors.
    Use when: the Hessian has few large eigenvalues, and the solve should need no tuning of inner iterations.

    Args:
        rank: directions of the sketch, at least 1; limited to the number of parameters.
        seed: seed of the directions, which are the same in every solve.
        tolerance: relative residual at which the solve counts as converged.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4):

        >>> Nystrom(rank=3).respond(lower, cotangent).contributions["upper"]["r"]
        tensor([1.0000, 0.5000, 0.2500])
    """

    rank: Count = 10
    seed: int = 0
    tolerance: NonNegative = 1e-6

    def solve(self, system: LinearSystem) -> Solution:
        cotangent = system.right_hand_side
        values, vectors = self._eigenpairs(system)
        within = vectors.T @ cotangent
        known = values.abs() > torch.finfo(values.dtype).eps ** 0.5 * values.abs().max()
        x = vectors @ torch.where(known, within / torch.where(known, values, 1.0), 0.0)
        if self.damping:  # outside the sketch the damped Hessian counts as damping I
            x = x + (cotangent - vectors @ within) / self.damping
        residual = system.residual(x)
        met = residual <= self.tolerance
        cause = "" if met else f"residual {residual:.3g} at rank {self.rank}: raise solver.rank or solver.damping"
        return Solution(x, residual, met, cause, failed=not residual < 1)

    def _eigenpairs(self, system: LinearSystem) -> tuple[Tensor, Tensor]:
        """Eigenvalues [k] of the damped approximation and orthonormal eigenvectors [N, k]."""
        cotangent = system.right_hand_side
        rank = min(self.rank, len(cotangent))
        generator = torch.Generator().manual_seed(self.seed)
        sketch = torch.randn(len(cotangent), rank, generator=generator, dtype=torch.float64)
        sketch = torch.linalg.qr(sketch)[0].to(cotangent)
        damped = torch.stack([system.product(column) for column in sketch.T], dim=1)
        if rank == len(cotangent):  # the sketch is a basis: nothing to approximate, and no shift to lose digits by
            core = sketch.T @ damped
            values, rotation = torch.linalg.eigh((core + core.T) / 2)
            return values, sketch @ rotation
        # This approximates only the Hessian, shifted so that a sketch beyond its rank can be inverted.
        shift = torch.finfo(damped.dtype).eps ** 0.5 * damped.norm()
        image = damped + (shift - self.damping) * sketch
        basis, triangle = torch.linalg.qr(image)
        core = sketch.T @ image
        small = triangle @ torch.linalg.pinv((core + core.T) / 2, hermitian=True) @ triangle.T
        values, rotation = torch.linalg.eigh((small + small.T) / 2)
        return values - shift + self.damping, basis @ rotation
