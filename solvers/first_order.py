"""Hypergradients from first derivatives only, by a penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel.solvers.base import Response, Solver, SolveReport
from multilevel.solvers.gradients import detached_leaves, gradients, grouped, keyed, less, sum_over_parts
from multilevel.solvers.lower_level import LowerLevel
from multilevel.solvers.neumann import largest_eigenvalue
from multilevel.solvers.products import FiniteDifferenceProducts, default_radius
from multilevel.solvers.products.stop_gradients import HeldLosses
from multilevel.solvers.ranges import Count, NonNegative, PositiveNumber
from multilevel.solvers.vectors import Tensors, flatten, unflatten


@dataclass
class FirstOrder(Solver):
    """The fully first-order penalty method (F2SA, Kwon et al. 2023), without any second derivative.

    Two copies of the lower parameters descend for ``steps`` steps from the current point p: on the lower loss minus its
    slope at p, plus and minus ``<a, z> / penalty``, where a is the cotangent. The contribution is half the penalty
    times the difference of the lower loss's gradients with respect to the levels that it reads: a central difference
    with an error of O(1 / penalty^2). On a quadratic it equals the Neumann series with ``steps`` terms.

    Assumes: a positive definite lower Hessian, damping included.
    Costs: two evaluations per step, two for the result, two per power iteration; memory for one evaluation.
    Use when: operators have no second derivative, and a better solve than the identity is needed.

    Args:
        steps: number of descent steps, at least 1.
        step_size: step size of the descent; None takes 1 / (estimate of the largest eigenvalue).
        penalty: multiplier of the lower loss, for a cotangent whose largest absolute value is about 1 (others are
            scaled); None takes a penalty that moves the copies by about the radius of a finite difference.
        power_iterations: power iterations for that estimate, at least 1.
        damping: weight of ``|z - p|^2 / 2`` in the descent, >= 0.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4):

        >>> response = FirstOrder(steps=50).respond(lower, cotangent)
        >>> response.contributions["upper"]["r"].round(decimals=3)
        tensor([1.0000, 0.5000, 0.2500])
    """

    steps: Count = 20
    step_size: PositiveNumber | None = None
    penalty: PositiveNumber | None = None
    power_iterations: Count = 5
    damping: NonNegative = 0.0

    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        products, right_hand_side = FiniteDifferenceProducts(lower), flatten(cotangent)
        losses = products.losses
        step = self.step_size or self._chosen_step(products, right_hand_side)
        counted = losses.evaluations  # with the products
        scale = 1 / self.penalty if self.penalty else self._chosen_scale(lower, step, right_hand_side)
        start, slope = flatten(lower.parameters), flatten(products.gradient())
        # A convex problem moves by no more than every step along the cotangent would.
        largest = 1.01 * self.steps * step * scale * right_hand_side.norm().item()
        ends, steps = [], 0
        for sign in (1, -1):
            moved = torch.zeros_like(start)
            for _ in range(self.steps):
                if not moved.norm().item() < largest:
                    break
                steps += 1
                descent = flatten(losses.gradient(unflatten(start + moved, lower.parameters), lower.reads)) - slope
                moved = moved - step * (descent + sign * scale * right_hand_side + self.damping * moved)
            ends.append(moved)
        failed = not max(end.norm().item() for end in ends) < largest
        cause = "the descent diverged: lower solver.step_size or raise solver.damping" if failed else ""
        if failed:  # the first step is the scaled identity
            ends = [-sign * step * scale * right_hand_side for sign in (1, -1)]
        points = [unflatten(start + end, lower.parameters) for end in ends]
        contributions = _difference(losses, lower, points, 2 * scale)
        evaluations = products.evaluations + losses.evaluations - counted + steps + 2
        return Response(contributions, SolveReport(evaluations, products.products, None, None, cause, failed))

    def _chosen_step(self, products: FiniteDifferenceProducts, cotangent: Tensor) -> float:
        def hessian(vector: Tensor) -> Tensor:
            named = unflatten(vector, products.lower.parameters)
            return flatten(products.hessian(named)) + self.damping * vector

        return 1 / (largest_eigenvalue(hessian, cotangent, self.power_iterations) or 1.0)

    def _chosen_scale(self, lower: LowerLevel, step: float, cotangent: Tensor) -> float:
        """1 / penalty such that the first descent step moves by the radius of a finite difference."""
        return default_radius(lower.parameters, lower.arithmetic) / (step * cotangent.norm().item())


def _difference(
    losses: HeldLosses, lower: LowerLevel, ends: list[dict[str, Tensor]], distance: float
) -> dict[str, dict[str, Tensor]]:
    """The difference between the loss's gradients with respect to the levels that it reads, at two values of the
    parameters, divided by a distance."""
    reads = {level: detached_leaves(tensors) for level, tensors in lower.reads.items()}
    leaves, parts = keyed(reads), range(len(lower.losses))

    def difference(part: int) -> dict[tuple[str, str], Tensor | None]:
        # free the first graph before building the second
        ahead = gradients(losses.at(part, ends[0], reads), leaves)
        return less(ahead, gradients(losses.at(part, ends[1], reads), leaves))

    scale = 1 / (distance * len(parts))
    total = sum_over_parts(difference, parts, leaves)
    return grouped({key: value * scale for key, value in total.items()}, reads)
