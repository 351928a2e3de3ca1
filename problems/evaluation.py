"""Stateless evaluation of losses: given parameters, a recorded batch, recorded draws, a recorded generator state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multilevel.problems import replicas
from multilevel.problems.autocast import AutocastAttention
from multilevel.problems.batches import fresh, map_tensors
from multilevel.problems.compilation import Compilation, Value
from multilevel.problems.errors import LossError, NotFiniteError
from multilevel.problems.levels import LevelHandle, Levels
from multilevel.problems.metrics import split
from multilevel.problems.problem import Problem
from multilevel.problems.randomness import RandomState, ReplayableDropout
from multilevel.problems.shared_calls import SharedCalls
from multilevel.solvers import SettingError
from multilevel.solvers.vectors import Tensors

PRECISIONS = ("float32", "bf16")
#: For reference computations; everything is cast when a loss is evaluated.
REFERENCE_PRECISION = "float64"


@dataclass(frozen=True)
class Part:
    """One batch of an update, and all that its loss depends on besides parameters.

    Attributes:
        batch: the batch, on the module's device.
        draws: what the level's ``draw`` returned for it.
        state: the generators' state that the loss starts from.
    """

    batch: Any
    draws: Any
    state: RandomState


#: What an update used: one part for each batch that it averages over.
Record = tuple[Part, ...]


class Evaluator:
    """Evaluates the losses of a set of levels at substituted parameters.

    Args:
        problems: the levels by name.
        precision: float32 (the parameters' own dtype), bf16 (autocast) or float64 (parameters, buffers, batches
            and draws are cast: a reference).
        compilation: makes calls on the levels where they can be compiled; None makes all as they are.

    Raises:
        SettingError: an unknown precision.
    """

    def __init__(
        self, problems: Mapping[str, Problem], precision: str = "float32", compilation: Compilation | None = None
    ) -> None:
        if precision not in (*PRECISIONS, REFERENCE_PRECISION):
            raise SettingError("precision", precision, f"one of {', '.join(PRECISIONS)}")
        self.problems = problems
        self.precision = precision
        self.compilation = compilation

    def loss(
        self,
        name: str,
        part: Part,
        parameters: Mapping[str, Tensors],
        move_buffers: bool = False,
        shared: SharedCalls | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The level's loss and metrics, with ``parameters`` in place of the levels' own.

        Args:
            name: the level.
            part: its batch and draws; the generators are the caller's business.
            parameters: for each level to substitute, its variables; the others enter detached.
            move_buffers: let this level's buffers (running statistics) move, as an update does.
            shared: calls that other evaluations of one solve have made already.

        Raises:
            LossError: the loss is not a scalar tensor.
            NotFiniteError: it is not finite.
        """
        part = self.cast(part)
        if shared is not None:
            shared.give(part.batch, part.draws)

        def evaluate(compilation: Compilation | None) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
            levels, own_buffers = self._levels(parameters, name if move_buffers else None, shared, compilation)
            with ReplayableDropout(), self._autocast(name):
                return self.problems[name].loss(levels, fresh(part.batch), fresh(part.draws)), own_buffers

        value, own_buffers = self._compiled(name, evaluate)
        loss, metrics = self._checked(name, value)
        if move_buffers and replicas.count() > 1:
            check_finite(name, replicas.mean([loss.detach()])[0].item())
        _move(own_buffers)
        return loss, metrics

    def outputs(self, name: str, part: Part, parameters: Mapping[str, Tensors]) -> tuple[list[Tensor], RandomState]:
        """What a level computes on a recorded part, and the generators' state that its criterion starts from."""
        part = self.cast(part)
        levels, _ = self._levels(replicated(parameters), None)
        with part.state.active(), ReplayableDropout(), self._autocast(name):
            found = self.problems[name].outputs(levels, fresh(part.batch), fresh(part.draws))
            after = RandomState.capture()
        return [found] if isinstance(found, Tensor) else list(found), after

    def criterion(
        self, name: str, part: Part, outputs: Sequence[Tensor], parameters: Mapping[str, Tensors], state: RandomState
    ) -> Tensor:
        """The loss of a level's outputs."""
        part = self.cast(part)
        levels, _ = self._levels(replicated(parameters), None)
        given = outputs[0] if len(outputs) == 1 else list(outputs)
        with state.active(), ReplayableDropout(), self._autocast(name):
            value = self.problems[name].criterion(given, levels, fresh(part.batch), fresh(part.draws))
            return self._checked(name, value)[0]

    def cast(self, part: Part) -> Part:
        """A part as this evaluator's precision takes it."""
        if self.precision != REFERENCE_PRECISION:
            return part
        return Part(_doubled(part.batch), _doubled(part.draws), part.state)

    def _checked(self, name: str, value: Any) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = split(name, value)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            shape = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise LossError(f"the loss of level {name!r} must be a scalar tensor; got {shape}")
        if replicas.count() == 1:  # what one of several ranks alone saw all of them see in the means
            check_finite(name, loss.item())
        return loss, metrics

    def replay(
        self, name: str, part: Part, parameters: Mapping[str, Tensors], shared: SharedCalls | None = None
    ) -> Tensor:
        """The loss of a recorded part, its random draws repeated; no generator and no buffer moves.

        With several ranks it is this rank's own, and its derivatives in ``parameters`` are those of the ranks' mean.
        """
        with part.state.active():
            return self.loss(name, part, replicated(parameters, shared, self.problems), shared=shared)[0]

    def record(self, name: str, batch: Any) -> Part:
        """Draw what the loss of ``batch`` needs from the generators as they stand, and record it."""
        batch = fresh(batch)  # whatever draw writes into it is the loss's alone

        def draw(compilation: Compilation | None) -> Any:
            levels, _ = self._levels({}, None, compilation=compilation)
            with torch.no_grad(), self._autocast(name):
                return self.problems[name].draw(levels, batch)

        return Part(batch, self._compiled(name, draw), RandomState.capture())

    def device(self, name: str) -> torch.device:
        """Where a level lives: the device of its first parameter or buffer."""
        return module_device(self.problems[name].module)

    def arithmetic(self, name: str) -> torch.dtype:
        """The coarsest dtype that a level's loss is computed in."""
        if self.precision == "bf16":
            return torch.bfloat16
        return next((value.dtype for value in self.detached(name).values()), torch.float32)

    def detached(self, name: str) -> dict[str, Tensor]:
        """The level's variables at the current point, outside any graph."""
        return {key: self._own(parameter.detach()) for key, parameter in self.problems[name].variables().items()}

    def _levels(
        self,
        parameters: Mapping[str, Tensors],
        moving: str | None,
        shared: SharedCalls | None = None,
        compilation: Compilation | None = None,
    ) -> tuple[Levels, list[tuple[Tensor, Tensor]]]:
        """Handles on all levels, and (buffer, its substitute) for the buffers of the level that may move."""
        moved: list[tuple[Tensor, Tensor]] = []

        def handle(name: str) -> LevelHandle:
            module = self.problems[name].module
            values = {key: self._own(value.detach()) for key, value in module.named_parameters()}
            for key, buffer in module.named_buffers():
                values[key] = self._own(buffer.clone())
                if name == moving:
                    moved.append((buffer, values[key]))
            values.update(parameters.get(name, {}))
            usable = shared is not None and shared.active and name != shared.level
            return LevelHandle(module, values, parameters.get(name, {}), shared if usable else None, compilation)

        return Levels(handle, tuple(self.problems)), moved

    def _compiled(self, name: str, evaluate: Callable[[Compilation | None], Value]) -> Value:
        """``evaluate`` with what compiles its calls, where there is that."""
        return evaluate(None) if self.compilation is None else self.compilation.attempt(name, evaluate)

    def _own(self, tensor: Tensor) -> Tensor:
        return _doubled(tensor) if self.precision == REFERENCE_PRECISION else tensor

    @contextmanager
    def _autocast(self, name: str) -> Iterator[None]:
        if self.precision != "bf16":
            yield
            return
        with torch.autocast(self.device(name).type, dtype=torch.bfloat16), AutocastAttention():
            yield


def check_finite(name: str, loss: float) -> None:
    """Raise NotFiniteError for a loss of level ``name`` that is inf or nan."""
    if not math.isfinite(loss):
        raise NotFiniteError(
            f"the loss of level {name!r} is {loss}: lower its learning rate, clip its gradient, or look at its data"
        )


def replicated(
    parameters: Mapping[str, Tensors], shared: SharedCalls | None = None, problems: Mapping[str, Problem] | None = None
) -> Mapping[str, Tensors]:
    """``averaging`` of each level's parameters; within a solve once, for it to share the calls that take them.

    Buffers among them, known by their ``problems``, have no derivative, and the loss may write to them.
    """
    if replicas.count() == 1:
        return parameters
    result: dict[str, Tensors] = {}
    for level, tensors in parameters.items():
        names = [key for key, _ in problems[level].module.named_buffers() if key in tensors] if problems else []
        moving = {key: tensor for key, tensor in tensors.items() if key not in names} if names else tensors
        made = replicas.averaging(moving) if shared is None else shared.once(level, moving, replicas.averaging)
        result[level] = {**made, **{key: tensors[key] for key in names}} if names else made
    return result


def _move(buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Give buffers their new values, means over the ranks where they are no whole numbers."""
    if replicas.count() > 1:
        fractions = [pair for pair in buffers if pair[1].is_floating_point()]
        # means of differences: what has not moved stays what it is to the last bit
        means = replicas.mean([moved - buffer for buffer, moved in fractions])
        for (buffer, moved), difference in zip(fractions, means, strict=True):
            moved.copy_(buffer + difference)
    for buffer, moved in buffers:
        buffer.copy_(moved)


def _doubled(value: Any) -> Any:
    """Every floating-point tensor of a batch in float64."""
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, value)


def module_device(module: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU where it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
