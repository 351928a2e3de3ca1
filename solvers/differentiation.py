"""Tells losses how they will be differentiated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ContextDecorator, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from multilevel.solvers.errors import SolveError

#: Whether torch.func has wrapped a tensor.
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

_HIGHER: ContextVar[bool] = ContextVar("higher derivatives", default=False)


class differentiating(ContextDecorator):  # noqa: N801  # a block, like torch.no_grad
    """Within the block, torch records gradients, even inside ``torch.no_grad()``.

    Raises:
        SolveError: in inference mode, which cannot be left from inside.
    """

    def __enter__(self) -> None:
        if torch.is_inference_mode_enabled():
            raise SolveError("nothing can be differentiated within torch.inference_mode(): leave inference mode first")
        self._around = torch.is_grad_enabled()
        if not self._around:
            torch.set_grad_enabled(True)

    def __exit__(self, *error: object) -> None:
        if not self._around:
            torch.set_grad_enabled(False)

    def _recreate_cm(self) -> differentiating:
        return differentiating()  # a decorated function may call itself


class higher_derivatives:  # noqa: N801
    """Within the block, evaluations can be differentiated twice, and in forward mode.

    Compiled functions must not be used there, since they have only first derivatives. Attention uses its plain kernel,
    since fused kernels have no second derivative either, unless ``fused``.
    """

    def __init__(self, fused: bool = False) -> None:
        self._attention = None if fused else sdpa_kernel(SDPBackend.MATH)

    def __enter__(self) -> None:
        self._token = _HIGHER.set(True)
        if self._attention is not None:
            self._attention.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._attention is not None:
            self._attention.__exit__(None, None, None)
        _HIGHER.reset(self._token)


#: Whether this code runs within ``higher_derivatives``.
wants_higher_derivatives = _HIGHER.get


def modes_again() -> list[tuple[TorchFunctionMode, TorchFunctionMode]]:
    """The active function modes, each paired with its replacement in a recomputation.

    A mode that tracks computations has a method ``again``; other modes stay the same.
    """
    return [(mode, getattr(mode, "again", lambda mode=mode: mode)()) for mode in _get_current_function_mode_stack()]


@contextmanager
def computing_again(modes: Sequence[tuple[TorchFunctionMode, TorchFunctionMode]]) -> Iterator[None]:
    """Within the block, the modes of ``modes_again`` are active, except those that already are."""
    around = _get_current_function_mode_stack()
    with ExitStack() as stack:
        for mode, again in modes:
            if not any(mode is active for active in around):
                stack.enter_context(again)
        yield


def may_have_tangent(tensor: Tensor) -> bool:
    """Whether a tensor has a tangent of ``forward_ad`` itself, or may have one because torch.func wraps it."""
    return is_wrapped(tensor) or forward_ad.unpack_dual(tensor).tangent is not None


def writes_in_place(function: Any) -> bool:
    """Whether a torch function writes to the values of its first argument.

    >>> writes_in_place(Tensor.mul_), writes_in_place(Tensor.mul), writes_in_place(Tensor.t_)
    (True, False, False)
    """
    name = getattr(function, "__name__", "")
    return name in _WRITING or (name.endswith("_") and not name.endswith("__") and name not in _RESHAPING)


#: Functions that write to their first argument although their names do not end in an underscore.
_WRITING = frozenset("__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ipow__".split())
#: Functions with names that end in an underscore that do not change values.
_RESHAPING = frozenset(
    """
    requires_grad_ detach_ share_memory_ resize_ set_ as_strided_
    t_ transpose_ swapaxes_ swapdims_ squeeze_ unsqueeze_
    """.split()
)
