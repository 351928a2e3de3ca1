"""Products by forward mode combined with reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from multilevel.solvers.products.base import Products, Reads
from multilevel.solvers.vectors import Tensors

if TYPE_CHECKING:
    from multilevel.solvers.base import Loss, Prediction


class ForwardProducts(Products):
    """Forward mode and reverse mode: exact, no radius, no graph of the gradient kept.

    Forward over reverse: the derivative along v of the gradient that is asked for; for a mixed product only the
    levels read need a graph. The other order would cost the same, but torch's forward derivatives of normalization
    layers take their statistics for constants, so that a reverse pass over them is wrong.
    """

    lacks = "forward derivative"
    remedy = (
        "solver.product=reverse works where it has a second derivative, "
        "solver.product=finite_difference takes first derivatives alone"
    )

    def hessian(self, direction: Tensors, read_direction: Mapping[str, Tensors] | None = None) -> dict[str, Tensor]:
        reads = plain(self.lower.reads)
        if read_direction is None:
            return self._forward(lambda loss: lambda p: grad(cut(loss))(p, reads), (direction,))
        return self._forward(lambda loss: grad(cut(loss)), (direction, plain(read_direction)))

    def mixed(self, direction: Tensors) -> Reads:
        reads = plain(self.lower.reads)
        return self._forward(lambda loss: lambda p: grad(cut(loss), 1)(p, reads), (direction,))

    def output_tangents(self, prediction: Prediction, direction: Tensors) -> list[Tensor]:
        def outputs(parameters: Any) -> list[Tensor]:
            with NoGradientNoTangent():
                return list(prediction.outputs(parameters, self.lower.reads))

        return jvp(outputs, (dict(self.lower.parameters),), (dict(direction),))[1]

    def _forward(self, slope_of: Callable[[Loss], Any], directions: tuple[Any, ...]) -> Any:
        """Derivative of ``slope_of(loss)`` along directions in (p, r), averaged over the parts of the batch."""
        points = (dict(self.lower.parameters), plain(self.lower.reads))[: len(directions)]
        vectors = tuple(dict(direction) for direction in directions)
        total: Any = None
        with self.explained():
            for loss in self.lower.losses:
                term = jvp(slope_of(loss), points, vectors)[1]
                total = term if total is None else _combined(total, term)
        self.evaluations += 1
        self.products += 1
        return _scaled(total, 1 / len(self.lower.losses))


class NoGradientNoTangent(TorchFunctionMode):
    """Has forward mode see nothing of what runs without gradients, as reverse mode does."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if torch.is_grad_enabled():
            return result
        return tree_map_only(Tensor, lambda tensor: tensor.detach() if tensor.is_floating_point() else tensor, result)


def cut(loss: Loss) -> Callable[[Any, Any], Tensor]:
    """The loss, with no tangent through what it computes without gradients."""

    def evaluate(parameters: Any, reads: Any) -> Tensor:
        with NoGradientNoTangent():
            return loss(parameters, reads)

    return evaluate


def plain(reads: Mapping[str, Tensors]) -> dict[str, dict[str, Tensor]]:
    return {level: dict(tensors) for level, tensors in reads.items()}


def _combined(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {key: _combined(one[key], other[key]) for key in one}
    return one + other


def _scaled(value: Any, factor: float) -> Any:
    if factor == 1:
        return value
    if isinstance(value, dict):
        return {key: _scaled(one, factor) for key, one in value.items()}
    return value * factor
