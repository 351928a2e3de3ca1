"""What losses are told of how they will be differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from multilevel.solvers.errors import SolveError

_HIGHER: ContextVar[bool] = ContextVar("higher derivatives", default=False)


@contextmanager
def differentiating() -> Iterator[None]:
    """Within the block torch records gradients, also where ``torch.no_grad()`` holds around it.

    Raises:
        SolveError: in inference mode, which nothing within it can leave.
    """
    if torch.is_inference_mode_enabled():
        raise SolveError("a solve differentiates, which torch.inference_mode() rules out: leave inference mode first")
    with torch.enable_grad():
        yield


@contextmanager
def higher_derivatives(fused: bool = False) -> Iterator[None]:
    """Within the block whatever is evaluated can be differentiated twice, and in forward mode.

    Nothing may take a compiled function there, as those have first derivatives alone; attention takes its plain kernel,
    as fused ones have no second derivative either, unless ``fused``.
    """
    token = _HIGHER.set(True)
    try:
        with nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _HIGHER.reset(token)


def wants_higher_derivatives() -> bool:
    """Whether this is within ``higher_derivatives``."""
    return _HIGHER.get()
