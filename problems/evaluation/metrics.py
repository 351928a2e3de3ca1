"""Metrics, the numbers that a loss reports with its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multilevel.problems.errors import LossError


def split(level: str, value: Any) -> tuple[Any, dict[str, Any]]:
    """Split what the loss of ``level`` returned into the loss and the detached metrics.

    Raises:
        LossError: the result is neither a loss nor a loss with metrics that are numbers or tensors of one element.
    """
    if not isinstance(value, tuple):
        return value, {}
    if len(value) != 2 or not isinstance(value[1], Mapping):
        returned = ", ".join(describe(item) for item in value)
        raise LossError(
            f"the loss of level {level!r} returned a tuple of ({returned}): return only the loss, or "
            "(loss, {metric name: number})"
        )
    loss, metrics = value
    return loss, {key: _detached(level, key, metric) for key, metric in metrics.items()}


def describe(value: Any) -> str:
    """Describe a tensor by its shape, and any other value by its type."""
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _detached(level: str, key: str, metric: Any) -> Any:
    """The detached ``metric``, if ``float`` can convert it; a tensor's value is not read, which would wait for a
    GPU."""
    if isinstance(metric, Tensor) and metric.numel() == 1 and not metric.is_complex():
        return metric.detach()
    try:
        if not isinstance(metric, Tensor):
            float(metric)
            return metric
    except (TypeError, ValueError):
        pass
    raise LossError(
        f"metric {key!r} of level {level!r} is {describe(metric)}: give a number or a tensor of one element, such as "
        "its mean"
    )
