"""Supports torch.utils.checkpoint in losses: its recomputation runs in a backward pass, after the substitution has
ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch.autograd import forward_ad

from multilevel.problems.evaluation.compilation import as_written
from multilevel.solvers.differentiation import computing_again, modes_again

# Every call of torch.utils.checkpoint goes through one of these, under any imported name; torch 2.14 added _impl.
_PLAIN, _REENTRANT = "_checkpoint_without_reentrant_generator", "CheckpointFunction"
_GENERATOR = f"{_PLAIN}_impl" if hasattr(torch_checkpoint, f"{_PLAIN}_impl") else _PLAIN


class RecomputedWithin:
    """Within the block, torch.utils.checkpoint recomputes within ``surroundings`` and the function modes of the first
    computation. Neither computation is compiled.

    Checkpoints do not work with forward mode and torch.func, where the function is called directly. Reentrant
    checkpoints do not work with ``torch.autograd.grad``, so they run with ``use_reentrant=False``.

    Args:
        surroundings: a context that can be entered repeatedly.
    """

    def __init__(self, surroundings: AbstractContextManager[Any]) -> None:
        self._surroundings = surroundings

    def __enter__(self) -> None:
        self._before = vars(torch_checkpoint)[_GENERATOR], vars(torch_checkpoint)[_REENTRANT]
        setattr(torch_checkpoint, _GENERATOR, self._checkpoint)
        setattr(torch_checkpoint, _REENTRANT, _NotReentrant)

    def __exit__(self, *error: object) -> None:
        for name, value in zip((_GENERATOR, _REENTRANT), self._before, strict=True):
            setattr(torch_checkpoint, name, value)

    def _checkpoint(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Iterator[None]:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            yield
            return
        generator, modes = self._before[0], modes_again()

        def again(*inputs: Any, **named: Any) -> Any:
            with self._surroundings, as_written(), computing_again(modes):
                return function(*inputs, **named)

        with as_written():  # a compiled function saves other tensors than its recomputation
            yield from generator(again, *arguments, **keywords)


class _NotReentrant:
    """Replaces torch's ``CheckpointFunction``."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        return torch_checkpoint.checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=preserve)
