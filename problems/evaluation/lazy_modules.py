"""Initializes lazy modules, whose parameters get their shapes from the first batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from multilevel.problems.batches import Batches, fresh
from multilevel.problems.errors import GraphError
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.levels import Levels
from multilevel.problems.problem import Problem


def initialize_lazy_modules(problems: Mapping[str, Problem], batches: Mapping[str, Batches]) -> None:
    """Evaluate losses on their first batches, bottom level first, until every parameter is initialized.

    Initial weights are drawn from the global generators, as in a module's first call. Parameters stay the same objects,
    so optimizers hold them; batches are not consumed, and buffers keep their values.

    Raises:
        GraphError: no loss initializes a parameter.
    """
    failures: list[str] = []
    modules = {name: problem.module for name, problem in problems.items()}
    for name, problem in problems.items():
        if not any(map(_uninitialized, modules.values())):
            return
        try:
            with _standing_buffers(modules.values()):
                _evaluate(problem, Levels(modules), batches[name].peek())
        except Exception as error:  # a loss may raise any error
            reason = " ".join(str(error).split())
            failures.append(f"; the loss of {name!r} fails on its first batch ({type(error).__name__}: {reason})")
    for name, module in modules.items():
        for key in _uninitialized(module):
            raise GraphError(
                f"level {name!r}: no loss initializes its lazy parameter {key!r}: call the module once before "
                f"creating the graph{''.join(failures)}"
            )


def _evaluate(problem: Problem, levels: Any, batch: Any) -> None:
    batch = fresh(batch)
    with RandomState.seeded(0).active(), torch.no_grad():
        draws = problem.draw(levels, batch)
    problem.loss(levels, batch, draws)  # with gradients, since the loss may take one itself


def _uninitialized(module: nn.Module) -> list[str]:
    return [key for key, parameter in module.named_parameters() if is_lazy(parameter)]


@contextmanager
def _standing_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore buffers after the block; those initialized in it get their initial values."""
    saved: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def keep(module: nn.Module, *_: Any) -> None:
        named = module.named_buffers(recurse=False)
        saved.extend((module, key, buffer, buffer.clone()) for key, buffer in named if not is_lazy(buffer))

    hooks = []
    for part in {part for module in modules for part in module.modules()}:
        if any(is_lazy(tensor) for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))):
            hooks.append(part.register_forward_pre_hook(keep))  # after the hook that initializes it
        else:
            keep(part)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, key, buffer, value in reversed(saved):  # the first of several calls is restored last
            setattr(module, key, buffer)
            with torch.no_grad():
                buffer.copy_(value)
