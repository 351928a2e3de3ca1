"""Runs an engine on trial: afterwards it, its levels and its data are as before, bit for bit."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from multilevel.problems.batches import versions
from multilevel.problems.errors import NotFiniteError
from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.graph import Graph
from multilevel.problems.history import LevelHistory
from multilevel.problems.hypergradient import Hypergradient
from multilevel.problems.update import Updates


class Rehearsed(Protocol):
    """The part of an ``Engine`` that rehearsals use."""

    graph: Graph
    evaluator: Evaluator
    updates: Updates
    step: int
    recorded_steps: int
    recorded_outer_steps: int
    updated_now: set[str]

    @property
    def histories(self) -> Mapping[str, LevelHistory]: ...

    @property
    def skipped(self) -> Mapping[str, int]: ...

    @property
    def solve_hypergradient(self) -> Callable[..., Hypergradient]: ...

    def advance(self, steps: int = 1) -> None: ...


@contextmanager
def unchanged(engine: Rehearsed) -> Iterator[None]:
    """A block after which an engine, its levels and its data are bit for bit as before, also if it raises.

    Restored are modules (parameters, buffers, attributes), ``.grad``, optimizers, schedulers, records, solutions,
    ``engine.step``, and all generators, of the data, the draws and the losses too. The batches taken in the block come
    again and stay in memory until then, also those of an iterator. Tensors and containers stay the same objects.
    Callbacks are called in the block as ever. Blocks may be nested.

    Examples:
        >>> with unchanged(engine):  # the engine of Engine's example
        ...     engine.run(steps=2)
        ...     engine.step
        2
        >>> engine.step
        0
    """
    saved = Saved()
    for name, problem in engine.graph.problems.items():
        saved.add((problem.module, problem.optimizer, vars(engine.histories[name])))
        if problem.scheduler is not None:
            saved.add(vars(problem.scheduler))
        for parameter in problem.module.parameters():
            saved.add_gradient(parameter)
    _add_generators(engine, saved)
    random, step, updated = engine.updates.random, engine.step, set(engine.updated_now)
    try:
        with ExitStack() as stack:
            stack.enter_context(RandomState.capture().active())
            for batches in engine.graph.batches.values():
                stack.enter_context(batches.rewound())
            yield
    finally:
        saved.restore()
        engine.updates.random, engine.step, engine.updated_now = random, step, updated


@contextmanager
def updates_recorded(engine: Rehearsed, outer_steps: int) -> Iterator[None]:
    """A block in which all updates within the last ``outer_steps`` outer steps are recorded."""
    before = engine.recorded_steps, engine.recorded_outer_steps
    engine.recorded_steps, engine.recorded_outer_steps = sys.maxsize, max(outer_steps, before[1])
    try:
        yield
    finally:
        engine.recorded_steps, engine.recorded_outer_steps = before


class Saved:
    """Values of objects, to restore in place: of tensors, generators and containers, and the attributes of modules,
    optimizers and schedulers, nested in any way. Anything else stays as it is.

    Examples:
        >>> weight, saved = torch.zeros(1), Saved()
        >>> saved.add({"weight": weight})
        >>> _ = weight.add_(1)
        >>> saved.restore()
        >>> weight
        tensor([0.])
    """

    def __init__(self) -> None:
        self._restorations: list[Callable[[], Any]] = []
        self._objects: dict[int, Any] = {}  # kept alive, so that no other object gets the id

    def add(self, value: Any) -> None:
        if id(value) in self._objects:
            return
        self._objects[id(value)] = value
        if isinstance(value, Tensor):
            self._restorations.append(partial(_write, value, value.detach().clone(), versions([value])))
        elif isinstance(value, torch.Generator):
            self._restorations.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, nn.Module | Optimizer | LRScheduler):
            self.add(vars(value))
        elif isinstance(value, dict):
            self._restorations.append(partial(_refill, value, value.update, dict(value)))
            self._add_all(value.values())
        elif isinstance(value, list | deque):
            self._restorations.append(partial(_refill, value, value.extend, list(value)))
            self._add_all(value)
        elif isinstance(value, set):
            self._restorations.append(partial(_refill, value, value.update, set(value)))
        elif isinstance(value, tuple):
            self._add_all(value)

    def add_gradient(self, parameter: Tensor) -> None:
        """Save the ``.grad`` of a parameter."""
        self._restorations.append(partial(setattr, parameter, "grad", parameter.grad))
        self.add(parameter.grad)

    def restore(self) -> None:
        for restoration in self._restorations:
            restoration()

    def _add_all(self, values: Any) -> None:
        for value in list(values):
            self.add(value)


def _write(tensor: Tensor, value: Tensor, version: list[int]) -> None:
    if tensor.shape != value.shape:  # resized in place
        tensor.data = value
    elif versions([tensor]) != version or not torch.equal(tensor, value):  # autograd counts needless writes too
        tensor.detach().copy_(value)


def _refill(container: Any, fill: Callable[[Any], None], content: Any) -> None:
    container.clear()
    fill(content)


def _add_generators(engine: Rehearsed, saved: Saved) -> None:
    """Save the user's own generators: attributes of levels, and those that losses use."""
    for problem in engine.graph.problems.values():
        saved.add([value for value in vars(problem).values() if isinstance(value, torch.Generator)])
    for name in engine.graph.names:
        for part in engine.updates.record_of(name):
            if engine.histories[name].record is None:  # an evaluation notes the generators that the loss uses
                with part.state.active(), suppress(NotFiniteError):
                    engine.evaluator.evaluate(name, part, {}, observed=False)
            saved.add(list(part.generators))
