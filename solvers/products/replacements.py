"""Replaces functions that forward mode differentiates incorrectly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    **weight: Tensor | None,
) -> Tensor:
    """``F.mse_loss``, whose mean fails if the target has no tangent: torch divides the missing tangent in place."""
    if weight.get("weight") is not None:  # torch itself computes it by elementary operations
        return F.mse_loss(input, target, size_average, reduce, reduction, **weight)
    return _reduced(F.mse_loss(input, target, reduction="none"), _named(size_average, reduce, reduction))


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """``F.huber_loss``: delta times ``F.smooth_l1_loss``, whose gradient has a forward derivative."""
    loss = delta * F.smooth_l1_loss(input, target, reduction="none", beta=delta)
    return _reduced(loss if weight is None else loss * weight, reduction)


def soft_margin_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """``F.soft_margin_loss``: ``log(1 + exp(-target input))``."""
    return _reduced(-F.logsigmoid(target * input), _named(size_average, reduce, reduction))


#: By the function that a loss calls.
REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    Tensor.data.__get__: Tensor.detach,  # type: ignore[attr-defined]  # a tangent goes through ``data``
    F.mse_loss: mse_loss,
    F.huber_loss: huber_loss,
    F.soft_margin_loss: soft_margin_loss,
}


def _named(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction, from torch's deprecated arguments if given."""
    return reduction if size_average is None and reduce is None else legacy_get_string(size_average, reduce)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss
