"""Products by reverse mode over reverse mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multilevel.solvers.autograd_graph import nodes
from multilevel.solvers.errors import ProductError
from multilevel.solvers.gradients import Key, detached_leaves, filled, grouped, keyed, mean_over_parts, pulled
from multilevel.solvers.lower_level import Loss, LowerLevel, Prediction
from multilevel.solvers.products.base import Products, Reads
from multilevel.solvers.vectors import Tensors


class ReverseProducts(Products):
    """Reverse over reverse: exact. The gradient's graph is built once for all products of a solve.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4):

        >>> products = ReverseProducts(lower)
        >>> products.hessian({"p": torch.ones(3)})
        {'p': tensor([1., 2., 4.])}
        >>> products.mixed({"p": torch.ones(3)})
        {'upper': {'r': tensor([-1., -1., -1.])}}
    """

    mode = "reverse mode over reverse mode"
    lacks = "second derivative"
    remedy = "solver.product=finite_difference needs only first derivatives"

    def __init__(self, lower: LowerLevel, radius: float | None = None) -> None:
        super().__init__(lower, radius)
        self._parameters = detached_leaves(lower.parameters)
        self._reads = {level: detached_leaves(tensors) for level, tensors in lower.reads.items()}
        self._gradients: list[dict[str, Tensor]] = []

    def hessian(self, direction: Tensors, read_direction: Mapping[str, Tensors] | None = None) -> dict[str, Tensor]:
        if read_direction is None:
            return self._differentiate(self._parameters, direction)
        return self._transposed(direction, read_direction)

    def mixed(self, direction: Tensors) -> Reads:
        return grouped(self._differentiate(keyed(self._reads), direction), self._reads)

    def gradient(self) -> dict[str, Tensor]:
        return mean_over_parts(
            lambda slopes: {name: slope.detach() for name, slope in slopes.items()}, self._built(), self._parameters
        )

    def output_tangents(self, prediction: Prediction, direction: Tensors) -> list[Tensor]:
        leaves = detached_leaves(self.lower.parameters)
        outputs = prediction.outputs(leaves, self.lower.reads)
        dummies = {index: torch.zeros_like(output, requires_grad=True) for index, output in enumerate(outputs)}
        # The derivative of J^T w with respect to w along v is J v.
        slopes = pulled(dict(enumerate(outputs)), dummies, leaves, create_graph=True)
        linear = {name: slope for name, slope in slopes.items() if slope is not None and slope.requires_grad}
        return list(filled(pulled(linear, direction, dummies), dummies).values())

    def _differentiate(self, leaves: dict[Key, Tensor], direction: Tensors) -> dict[Key, Tensor]:
        """The derivative of <dg/dp, direction> with respect to ``leaves``, averaged over the parts of the batch."""
        with self.explained():
            product = mean_over_parts(
                lambda slopes: pulled(slopes, direction, leaves, keep=True), self._built(), leaves
            )
        self.products += 1
        return product

    def _transposed(self, direction: Tensors, read_direction: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """d/dp of <dg/dp, v> + <dg/dr, w>: uses a separate graph, since it needs the gradient with respect to the
        levels that it reads."""
        leaves = {**keyed({"": self._parameters}), **keyed(self._reads)}
        vectors = {**keyed({"": direction}), **keyed(read_direction)}

        def term(loss: Loss) -> dict[str, Tensor | None]:
            return pulled(self._gradient_graph(loss, leaves), vectors, self._parameters)

        with self.explained():
            product = mean_over_parts(term, self.lower.losses, self._parameters)
        self.evaluations += 1
        self.products += 1
        return product

    def _built(self) -> list[dict[str, Tensor]]:
        """The gradient of each loss, with its graph."""
        if not self._gradients:
            with self.explained():
                self._gradients += [self._gradient_graph(loss, self._parameters) for loss in self.lower.losses]
            self.evaluations += 1
        return self._gradients

    def _gradient_graph(self, loss: Loss, leaves: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The gradient of a loss with respect to ``leaves``, 0 where it does not depend on one."""
        value = differentiable_twice(loss(self._parameters, self._reads))
        slopes = torch.autograd.grad(value, list(leaves.values()), create_graph=True, materialize_grads=True)
        return dict(zip(leaves, slopes, strict=True))


def differentiable_twice(loss: Tensor) -> Tensor:
    """Return ``loss`` unless it was computed by a Function marked ``once_differentiable``, whose second derivatives
    torch may silently set to 0.

    Raises:
        ProductError: the message names the Function.
    """
    for node in nodes(loss):
        function: Any = getattr(type(node), "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE:
            raise ProductError(
                f"the autograd.Function {function.__name__} is marked once_differentiable and has no second "
                f"derivative: {ReverseProducts.remedy}"
            )
    return loss


_ONCE = torch.autograd.function.once_differentiable(lambda context: None).__code__
