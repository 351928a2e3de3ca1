"""Hessian-vector and mixed products of a lower level's loss, exact or by finite differences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from multilevel.solvers.vectors import Tensors, norm, shifted

if TYPE_CHECKING:
    from multilevel.solvers.base import Loss, LowerLevel

Reads = dict[str, dict[str, Tensor]]
Key = TypeVar("Key")


class Products(ABC):
    """Products of second derivatives of one lower level at one point, and what they have cost so far.

    Attributes:
        evaluations: evaluations of the loss over the whole batch.
        products: Hessian-vector and mixed products formed.
    """

    def __init__(self, lower: LowerLevel, radius: float | None = None) -> None:
        self.lower = lower
        self.radius = radius
        self.evaluations = 0
        self.products = 0

    @abstractmethod
    def hessian(self, direction: Tensors) -> dict[str, Tensor]:
        """H v: the Hessian in the lower level's parameters times ``direction``, same names and shapes."""

    @abstractmethod
    def mixed(self, direction: Tensors) -> Reads:
        """d/dr <dg/dp, v> for every level r read, v being ``direction``: ``{level: {parameter: tensor}}``."""


class ReverseProducts(Products):
    """Reverse over reverse: exact. The gradient's graph is built once and serves every product of a solve."""

    def __init__(self, lower: LowerLevel, radius: float | None = None) -> None:
        super().__init__(lower, radius)
        self._parameters = _leaves(lower.parameters)
        self._reads = {level: _leaves(tensors) for level, tensors in lower.reads.items()}
        self._gradients: list[tuple[Tensor, ...]] = []

    def hessian(self, direction: Tensors) -> dict[str, Tensor]:
        return self._differentiate(self._parameters, direction)

    def mixed(self, direction: Tensors) -> Reads:
        return _grouped(self._differentiate(_keyed(self._reads), direction), self._reads)

    def _differentiate(self, leaves: dict[Key, Tensor], direction: Tensors) -> dict[Key, Tensor]:
        """Derivative of <dg/dp, direction> in ``leaves``, averaged over the parts of the batch."""
        if not self._gradients:
            self._build_gradients()
        total = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for gradients in self._gradients:
            # A gradient that does not depend on anything being differentiated has no graph: it contributes 0.
            pairs = [
                (gradient, vector)
                for gradient, vector in zip(gradients, direction.values(), strict=True)
                if gradient.requires_grad
            ]
            if pairs:
                outputs, vectors = zip(*pairs, strict=True)
                terms = torch.autograd.grad(
                    outputs, list(leaves.values()), vectors, retain_graph=True, materialize_grads=True
                )
                total = [value + term for value, term in zip(total, terms, strict=True)]
        self.products += 1
        return {key: value / len(self._gradients) for key, value in zip(leaves, total, strict=True)}

    def _build_gradients(self) -> None:
        # Fused attention kernels have no second derivative; the plain one has.
        with sdpa_kernel(SDPBackend.MATH):
            for loss in self.lower.losses:
                value = loss(self._parameters, self._reads)
                gradients = torch.autograd.grad(
                    value, list(self._parameters.values()), create_graph=True, materialize_grads=True
                )
                self._gradients.append(gradients)
        self.evaluations += 1


class FiniteDifferenceProducts(Products):
    """Central differences of gradients at ``p +- (radius / |v|) v``: first derivatives only, no second one.

    Args:
        radius: norm of the perturbation; None chooses it, see ``default_radius``.
    """

    def hessian(self, direction: Tensors) -> dict[str, Tensor]:
        def difference(loss: Loss, plus: Tensors, minus: Tensors) -> list[Tensor]:
            ahead, behind = _leaves(plus), _leaves(minus)
            first = _gradient(loss(ahead, self.lower.reads), ahead)
            second = _gradient(loss(behind, self.lower.reads), behind)
            return [one - other for one, other in zip(first, second, strict=True)]

        return self._central(self.lower.parameters, direction, difference)

    def mixed(self, direction: Tensors) -> Reads:
        reads = {level: _leaves(tensors) for level, tensors in self.lower.reads.items()}
        leaves = _keyed(reads)

        def difference(loss: Loss, plus: Tensors, minus: Tensors) -> list[Tensor]:
            ahead = loss(plus, reads)
            if self.lower.shared.holds_graph:  # one backward pass through what both points have in common
                return _gradient(ahead - loss(minus, reads), leaves)
            first = _gradient(ahead, leaves)
            del ahead  # its graph goes before the second one comes
            return [one - other for one, other in zip(first, _gradient(loss(minus, reads), leaves), strict=True)]

        return _grouped(self._central(leaves, direction, difference), reads)

    def _central(
        self, leaves: Mapping[Key, Tensor], direction: Tensors, difference: Callable[..., list[Tensor]]
    ) -> dict[Key, Tensor]:
        """Central difference along ``direction``, averaged over the parts of the batch.

        ``difference(loss, plus, minus)`` gives the gradient in ``leaves`` at the one point less that at the other.
        """
        self.products += 1
        length = norm(direction)
        if length == 0:
            return {key: torch.zeros_like(leaf) for key, leaf in leaves.items()}
        radius = self.radius or default_radius(self.lower.parameters, self.lower.arithmetic)
        step = radius / length
        plus = shifted(self.lower.parameters, direction, step)
        minus = shifted(self.lower.parameters, direction, -step)
        total = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for loss in self.lower.losses:
            total = [some + term for some, term in zip(total, difference(loss, plus, minus), strict=True)]
        self.evaluations += 2
        scale = 1 / (2 * step * len(self.lower.losses))
        return {key: some * scale for key, some in zip(leaves, total, strict=True)}


def _gradient(value: Tensor, leaves: Mapping[Any, Tensor]) -> list[Tensor]:
    """Derivative of a scalar in each of ``leaves``, 0 where it does not depend on one."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves.values()]
    return list(torch.autograd.grad(value, list(leaves.values()), materialize_grads=True))


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
PRODUCTS: dict[str, type[Products]] = {
    "reverse": ReverseProducts,
    "finite_difference": FiniteDifferenceProducts,
}


def _leaves(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def _keyed(reads: Mapping[str, Tensors]) -> dict[tuple[str, str], Tensor]:
    return {(level, name): tensor for level, tensors in reads.items() for name, tensor in tensors.items()}


def _grouped(values: Mapping[tuple[str, str], Tensor], like: Mapping[str, Tensors]) -> Reads:
    return {level: {name: values[level, name] for name in tensors} for level, tensors in like.items()}
