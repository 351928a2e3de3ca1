"""Products by central differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from multilevel.solvers.lower_level import LowerLevel, Prediction
from multilevel.solvers.products.base import (
    Key,
    Products,
    Reads,
    added,
    detached_leaves,
    gradient_of,
    grouped,
    keyed,
)
from multilevel.solvers.products.stop_gradients import HeldLosses
from multilevel.solvers.vectors import Tensors, norm, shifted


class FiniteDifferenceProducts(Products):
    """Central differences of gradients at ``p +- (radius / |v|) v``: first derivatives only, no second one.

    What the loss detaches is held at its value at p, see ``HeldLosses``.

    Args:
        radius: norm of the perturbation; None chooses it, see ``default_radius``.

    Attributes:
        losses: the level's, with what they detach held.
    """

    mode = "reverse mode"
    lacks = "first derivative"
    remedy = "nothing can be differentiated through it"

    def __init__(self, lower: LowerLevel, radius: float | None = None) -> None:
        super().__init__(lower, radius)
        self.losses = HeldLosses(lower)

    def hessian(self, direction: Tensors, read_direction: Mapping[str, Tensors] | None = None) -> dict[str, Tensor]:
        def difference(part: int, plus: Tensors, minus: Tensors, step: float) -> list[Tensor]:
            ahead, behind = detached_leaves(plus), detached_leaves(minus)
            first = gradient_of(self.losses.at(part, ahead, self._reads_at(read_direction, step)), ahead)
            second = gradient_of(self.losses.at(part, behind, self._reads_at(read_direction, -step)), behind)
            return [one - other for one, other in zip(first, second, strict=True)]

        return self._central(self.lower.parameters, direction, difference, read_direction)

    def mixed(self, direction: Tensors) -> Reads:
        reads = {level: detached_leaves(tensors) for level, tensors in self.lower.reads.items()}
        leaves = keyed(reads)

        def difference(part: int, plus: Tensors, minus: Tensors, step: float) -> list[Tensor]:
            first = gradient_of(self.losses.at(part, plus, reads), leaves)  # its graph goes before the second one comes
            second = gradient_of(self.losses.at(part, minus, reads), leaves)
            return [one - other for one, other in zip(first, second, strict=True)]

        return grouped(self._central(leaves, direction, difference), reads)

    def output_tangents(self, prediction: Prediction, direction: Tensors) -> list[Tensor]:
        length = norm(direction)
        if length == 0:
            return [torch.zeros_like(one) for one in prediction.outputs(self.lower.parameters, self.lower.reads)]
        step = self._radius() / length
        ahead, behind = (
            prediction.outputs(shifted(self.lower.parameters, direction, sign * step), self.lower.reads)
            for sign in (1, -1)
        )
        self.evaluations += 2
        return [(one - other) / (2 * step) for one, other in zip(ahead, behind, strict=True)]

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
        difference: Callable[..., list[Tensor]],
        read_direction: Mapping[str, Tensors] | None = None,
    ) -> dict[Key, Tensor]:
        """Central difference along ``direction``, averaged over the parts of the batch.

        ``difference(part, plus, minus, step)`` gives the gradient in ``leaves`` at the one point less that at the
        other.
        """
        self.products += 1
        along = [norm(tensors) for tensors in (direction, *(read_direction or {}).values())]
        length = sum(one**2 for one in along) ** 0.5
        if length == 0:
            return {key: torch.zeros_like(leaf) for key, leaf in leaves.items()}
        step = self._radius() / length
        plus = shifted(self.lower.parameters, direction, step)
        minus = shifted(self.lower.parameters, direction, -step)
        total = [torch.zeros_like(leaf) for leaf in leaves.values()]
        before = self.losses.evaluations
        for part in range(len(self.lower.losses)):
            total = added(total, difference(part, plus, minus, step))
        self.evaluations += 2 + self.losses.evaluations - before
        scale = 1 / (2 * step * len(self.lower.losses))
        return {key: some * scale for key, some in zip(leaves, total, strict=True)}


def default_radius(parameters: Tensors, arithmetic: torch.dtype) -> float:
    """Norm of the perturbation where none is given: ``3 eps^(1/3)`` times the parameters' root mean square.

    A central difference errs by O(radius^2) from truncation and by O(eps / radius) from rounding, ``eps`` being the
    precision of ``arithmetic``: the sum is least where the radius goes with eps^(1/3). Its norm, not each of its
    components, is measured against the size of one weight: in a network, moving N weights together matters more
    the more there are, while their rounding averages out. benchmarks/finite_difference_radius.py measures it.
    """
    count = sum(tensor.numel() for tensor in parameters.values())
    # Parameters near zero (a head just initialized) still live on the scale of usual initial weights.
    scale = max(norm(parameters) / count**0.5, SMALLEST_SCALE)
    return RADIUS_FACTOR * torch.finfo(arithmetic).eps ** (1 / 3) * scale


RADIUS_FACTOR = 3.0
SMALLEST_SCALE = 0.01
