"""What losses are told of how they will be differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from torch.nn.attention import SDPBackend, sdpa_kernel

_HIGHER: ContextVar[bool] = ContextVar("higher derivatives", default=False)


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
