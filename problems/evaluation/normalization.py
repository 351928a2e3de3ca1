"""Normalizations with correct third derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers import ProductError


class ElementaryNormalization(TorchFunctionMode):
    """Makes normalizations compute by elementary operations.

    torch's own treat mean and deviation as constants from the third derivative on, which is silently wrong for layer
    norm, and for batch and instance norm with batch statistics (github.com/pytorch/pytorch/issues/175754 and 186256).

    Raises:
        ProductError: a loss calls them directly, not through torch.nn.functional, where they can be replaced.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        if function in _LOW_LEVEL:
            raise ProductError(
                f"torch.{function.__name__} has a wrong third derivative, but levels that read each other need a "
                f"correct one: call torch.nn.functional.{function.__name__.removeprefix('native_')} instead"
            )
        if function not in _REPLACED:
            return function(*arguments, **keywords)
        bound = inspect.signature(function).bind(*arguments, **keywords)
        bound.apply_defaults()
        return _REPLACED[function](function, *bound.args)


def _layer_norm(
    function: Any, input: Tensor, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    dimensions = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    return _scaled(_standardized(input, dimensions, eps), weight, bias)


def _channel_norm(
    over_batch: bool,
    function: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    of_input: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Batch and instance norm; with running statistics, which do not depend on the input, they are affine."""
    if not of_input:
        return function(input, running_mean, running_var, weight, bias, False, momentum, eps)
    dimensions = (*([0] if over_batch else []), *range(2, input.ndim))
    shape = (-1, *[1] * (input.ndim - 2))
    weight, bias = (None if parameter is None else parameter.reshape(shape) for parameter in (weight, bias))
    return _scaled(_standardized(input, dimensions, eps), weight, bias)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / |v|``, the norm over all dimensions except ``dim`` (over all for -1), by elementary operations.

    torch's own, in both forms of ``weight_norm``, treats the norm as a constant in its second derivative.

    >>> weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0]]))
    tensor([[6., 8.]])
    """
    over = [index for index in range(v.ndim) if index != dim]
    return v * (g / v.square().sum(over, keepdim=True).sqrt()) if over else v * (g / v.abs())


def _standardized(input: Tensor, dimensions: tuple[int, ...], eps: float) -> Tensor:
    """Standardize to mean 0 and deviation 1 over some dimensions, computed at least in float32."""
    values = at_least_float32(input)
    centred = values - values.mean(dimensions, keepdim=True)
    return (centred * (centred.square().mean(dimensions, keepdim=True) + eps).rsqrt()).to(input.dtype)


def _scaled(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    values = values if weight is None else values * weight
    return values if bias is None else values + bias


_REPLACED: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    F.batch_norm: partial(_channel_norm, True),
    F.instance_norm: partial(_channel_norm, False),
}
_LOW_LEVEL = {torch.layer_norm, torch.native_layer_norm, torch.batch_norm, torch.native_batch_norm, torch.instance_norm}
