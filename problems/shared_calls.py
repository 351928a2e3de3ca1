"""What several evaluations of one loss have in common, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multilevel.problems.autocast import AutocastState
from multilevel.problems.carried_calls import CarriedCall
from multilevel.problems.randomness import RandomState


@dataclass(frozen=True)
class _Call:
    """A call on a level's module that has been made: what went in, what came out, the generators before and after."""

    target: tuple[Any, ...]
    arguments: Any
    parameters: Sequence[Tensor]
    result: Any
    versions: list[int]
    before: RandomState
    after: RandomState


class SharedCalls:
    """Results of calls on levels whose parameters a solve does not perturb, kept while it lasts.

    A solve evaluates a level's loss at several values of that level's parameters; an encoder that the loss reads
    computes the same features each time. A call is made again unless module, method, parameters, arguments (the
    same tensors, unchanged), autocast and the state of every generator are what they were; then its result is given
    once more, and the generators are put where the call had left them. A call that moved buffers, or that takes
    tensors which the loss has computed itself, is always made again.

    A loss that differentiates a shared result by itself must keep its graph (``create_graph`` or ``retain_graph``).

    Args:
        level: the level whose parameters are perturbed.
        carried: calls that the level's last update has made; each is taken out when it serves again.
    """

    def __init__(self, level: str, carried: list[CarriedCall] | None = None) -> None:
        self.level = level
        self._carried = [] if carried is None else carried
        self.active = False
        self._given: set[int] = set()
        self._calls: list[_Call] = []
        self._made: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = []

    @property
    def holds_graph(self) -> bool:
        """Whether a result kept here depends on something being differentiated."""
        return any(tensor.requires_grad for call in self._calls for tensor in _tensors(call.result))

    def give(self, *inputs: Any) -> None:
        """Name what the next evaluation is given (batch, draws, nested): the tensors that a shared call may take."""
        self._given = {id(tensor) for tensor in _tensors(inputs)}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within the block calls are shared; after it they are forgotten."""
        self.active = True
        try:
            yield
        finally:
            self.active = False
            self._calls.clear()
            self._made.clear()

    def carry(self) -> list[CarriedCall]:
        """The calls made so far whose result is one tensor that depends on what was substituted."""
        return [
            CarriedCall(call.target, call.arguments, call.parameters, call.result, call.before, call.after)
            for call in self._calls
            if isinstance(call.result, Tensor) and call.result.requires_grad
        ]

    def once(
        self, level: str, tensors: Mapping[str, Tensor], make: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """``make(tensors)``; while calls are shared the first result for the same tensors of a level, for its calls to
        be the same."""
        if not self.active or level == self.level:
            return make(tensors)
        for given, made in self._made:
            if _same(given, tensors):
                return made
        self._made.append((tensors, make(tensors)))
        return self._made[-1][1]

    def call(
        self,
        target: tuple[Any, ...],
        parameters: Sequence[Tensor],
        arguments: Any,
        buffers: Sequence[Tensor],
        compute: Callable[[], Any],
    ) -> Any:
        """The result of ``compute``, from an earlier call where it is the same call.

        Args:
            target: module and method.
            parameters: the tensors substituted for the module's parameters.
            arguments: of the call, nested.
            buffers: the tensors substituted for the module's buffers.
            compute: makes the call.
        """
        if any(id(tensor) not in self._given for tensor in _tensors(arguments)):
            return compute()
        target = (*target, torch.is_grad_enabled(), AutocastState.capture((*parameters, *_tensors(arguments))))
        before = RandomState.capture()
        for call in self._calls:
            same = call.target == target and _same(call.parameters, parameters) and _same(call.arguments, arguments)
            if same and call.before.equals(before) and call.versions == _versions((arguments, call.result)):
                call.after.restore()
                return call.result
        moves = [buffer._version for buffer in buffers]
        result = self._again(target, parameters, arguments, before)
        if result is None:
            result = compute()
        if moves == [buffer._version for buffer in buffers]:
            versions = _versions((arguments, result))
            self._calls.append(_Call(target, arguments, parameters, result, versions, before, RandomState.capture()))
        return result

    def _again(
        self, target: tuple[Any, ...], parameters: Sequence[Tensor], arguments: Any, before: RandomState
    ) -> Tensor | None:
        """The result of the same call in the level's last update; None where it made none."""
        if not any(parameter.requires_grad for parameter in parameters):
            return None
        for call in self._carried:
            same = call.target == target and _same(call.arguments, arguments) and call.before.equals(before)
            if same and call.is_at(parameters):
                self._carried.remove(call)
                call.after.restore()
                return call.again(parameters)
        return None


def _same(one: Any, other: Any) -> bool:
    """Whether two nested values hold the same tensors, and are otherwise equal."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and one == other)


_PLAIN = (bool, int, float, str, torch.dtype, torch.device)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _versions(value: Any) -> list[int]:
    """How often each tensor has been written to."""
    return [tensor._version for tensor in _tensors(value)]
