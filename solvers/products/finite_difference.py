"""Products by central differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from multilevel.solvers.gradients import Key, detached_leaves, gradients, grouped, keyed, less, sum_over_parts
from multilevel.solvers.lower_level import LowerLevel, Prediction
from multilevel.solvers.products.base import Products, Reads
from multilevel.solvers.products.stop_gradients import HeldLosses
from multilevel.solvers.vectors import Tensors, norm, shifted

Gradients = dict[Any, Tensor | None]


class FiniteDifferenceProducts(Products):
    """Central differences of gradients at ``p +- (radius / |v|) v``, from first derivatives only.

    Values that the loss detaches are held at their values at p, see ``HeldLosses``.

    Args:
        radius: norm of the perturbation; None computes it, see ``default_radius``.

    Attributes:
        losses: the level's losses, with detached values held.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4):

        >>> products = FiniteDifferenceProducts(lower, radius=0.01)
        >>> products.hessian({"p": torch.ones(3)})["p"].round(decimals=3)
        tensor([1., 2., 4.])
    """

    mode = "reverse mode"
    lacks = "first derivative"
    remedy = "nothing can be differentiated through it"

    def __init__(self, lower: LowerLevel, radius: float | None = None) -> None:
        super().__init__(lower, radius)
        self.losses = HeldLosses(lower)

    def hessian(self, direction: Tensors, read_direction: Mapping[str, Tensors] | None = None) -> dict[str, Tensor]:
        def slope(part: int, point: Tensors, step: float) -> Gradients:
            leaves = detached_leaves(point)
            return gradients(self.losses.at(part, leaves, self._reads_at(read_direction, step)), leaves)

        return self._central(self.lower.parameters, direction, slope, read_direction)

    def mixed(self, direction: Tensors) -> Reads:
        reads = {level: detached_leaves(tensors) for level, tensors in self.lower.reads.items()}
        leaves = keyed(reads)

        def slope(part: int, point: Tensors, step: float) -> Gradients:
            return gradients(self.losses.at(part, point, reads), leaves)

        return grouped(self._central(leaves, direction, slope), reads)

    def output_tangents(self, prediction: Prediction, direction: Tensors) -> list[Tensor]:
        length = norm(direction)
        if length == 0:
            return [torch.zeros_like(output) for output in prediction.outputs(self.lower.parameters, self.lower.reads)]
        step = self._radius() / length
        ahead, behind = (
            prediction.outputs(shifted(self.lower.parameters, direction, sign * step), self.lower.reads)
            for sign in (1, -1)
        )
        self.evaluations += 2
        return [(plus - minus) / (2 * step) for plus, minus in zip(ahead, behind, strict=True)]

    def _radius(self) -> float:
        return self.radius or default_radius(self.lower.parameters, self.lower.arithmetic)

    def _reads_at(self, direction: Mapping[str, Tensors] | None, step: float) -> Mapping[str, Tensors]:
        if direction is None:
            return self.lower.reads
        return {level: shifted(tensors, direction[level], step) for level, tensors in self.lower.reads.items()}

    def _central(
        self,
        leaves: Mapping[Key, Tensor],
        direction: Tensors,
        slope: Callable[[int, Tensors, float], Gradients],
        read_direction: Mapping[str, Tensors] | None = None,
    ) -> dict[Key, Tensor]:
        """Central difference along ``direction``, averaged over the parts of the batch.

        ``slope(part, point, step)`` gives the gradient with respect to ``leaves`` at ``point``, ``step`` directions
        away.
        """
        self.products += 1
        lengths = [norm(tensors) for tensors in (direction, *(read_direction or {}).values())]
        length = sum(value**2 for value in lengths) ** 0.5
        if length == 0:
            return {key: torch.zeros_like(leaf) for key, leaf in leaves.items()}
        step = self._radius() / length
        plus = shifted(self.lower.parameters, direction, step)
        minus = shifted(self.lower.parameters, direction, -step)
        before = self.losses.evaluations
        parts = range(len(self.lower.losses))

        def difference(part: int) -> Gradients:  # the graph of the first goes before the second one comes
            return less(slope(part, plus, step), slope(part, minus, -step))

        total = sum_over_parts(difference, parts, leaves)
        self.evaluations += 2 + self.losses.evaluations - before
        return {key: value * (1 / (2 * step * len(parts))) for key, value in total.items()}


def default_radius(parameters: Tensors, arithmetic: torch.dtype) -> float:
    """The default norm of the perturbation: ``3 eps^(1/3)`` times the parameters' root mean square.

    A central difference errs by O(radius^2) from truncation and by O(eps / radius) from rounding, where ``eps`` is the
    precision of ``arithmetic``; the sum is smallest for a radius proportional to eps^(1/3). The norm of the
    perturbation, not each component, is scaled to the size of one weight: in a network, moving N weights together has
    an effect that grows with N, while their rounding errors average out. benchmarks/finite_difference_radius.py
    measures it.

    Examples:
        >>> round(default_radius({"p": torch.ones(100)}, torch.float32), 4)
        0.0148
    """
    count = sum(tensor.numel() for tensor in parameters.values())
    # Parameters near zero (a newly initialized head) still have the scale of usual initial weights.
    scale = max(norm(parameters) / count**0.5, SMALLEST_SCALE)
    return RADIUS_FACTOR * torch.finfo(arithmetic).eps ** (1 / 3) * scale


RADIUS_FACTOR = 3.0
SMALLEST_SCALE = 0.01
