"""Stateless evaluation of losses: at given parameters, with a recorded batch, draws and generator state."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multilevel.problems import replicas
from multilevel.problems.batches import fresh, map_tensors, versions
from multilevel.problems.errors import LossError, NotFiniteError
from multilevel.problems.evaluation.autocast import AutocastAttention
from multilevel.problems.evaluation.compilation import (
    Compilation,
    GradientGraphError,
    as_written,
    compiled_by_user,
    is_as_written,
)
from multilevel.problems.evaluation.loss_mode import GradientsWantedError, LossMode
from multilevel.problems.evaluation.metrics import describe, split
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.recomputation import RecomputedWithin
from multilevel.problems.evaluation.recorded_batch import RecordedBatch, Values
from multilevel.problems.evaluation.substitution import Modules, Substitution, Variable
from multilevel.problems.levels import Levels
from multilevel.problems.problem import Problem
from multilevel.solvers.ranges import require
from multilevel.solvers.vectors import Tensors, scalar_values

PRECISIONS = ("float32", "bf16")
#: For reference computations; everything is cast in each evaluation.
REFERENCE_PRECISION = "float64"


@dataclass(frozen=True)
class Evaluation:
    """A loss evaluated at substituted parameters.

    Attributes:
        loss: a scalar.
        value: value of the loss; with several ranks, of this rank's.
        metrics: the metrics that the loss returned.
        touched: the watched levels that were used while gradients were enabled.
        used: the watched levels that were used at all.
        uses_replaced: whether the loss used a parameter that it did not get from its level's module.
        substitution: holds the new values of the buffers.
        moving: the level's parameters that its forward pass writes to.
    """

    loss: Tensor
    value: float
    metrics: dict[str, float]
    touched: frozenset[str]
    used: frozenset[str]
    uses_replaced: bool
    substitution: Substitution
    moving: Collection[str]

    def move_buffers(self, level: str) -> None:
        """Update a level's buffers (running statistics) to their values after the evaluation."""
        if moved := self.substitution.moved(level, self.moving):
            _move(moved)


class Evaluator:
    """Evaluates the losses of a set of levels at substituted parameters.

    Args:
        problems: the levels by name.
        precision: float32 (the parameters' own dtype), bf16 (autocast) or float64 (parameters, buffers, batches
            and draws are cast: a reference).
        compilation: compiles calls on the levels where possible; None compiles none.

    Raises:
        SettingError: an unknown precision.
    """

    def __init__(
        self, problems: Mapping[str, Problem], precision: str = "float32", compilation: Compilation | None = None
    ) -> None:
        known = (*PRECISIONS, REFERENCE_PRECISION)
        require("precision", precision, precision in known, f"one of {', '.join(PRECISIONS)}")
        self.problems = problems
        self.precision = precision
        self.compilation = compilation
        modules = {name: problem.module for name, problem in problems.items()}
        self.modules = Modules(modules)
        self.levels = Levels(modules)
        self._cast = _doubled if precision == REFERENCE_PRECISION else None  # of parameters and buffers
        #: Lines about what is compiled and what is not; the code that shows them removes them.
        self.notices = compiled_by_user(modules) if compilation is None else compilation.notices

    def evaluate(
        self,
        name: str,
        part: RecordedBatch,
        parameters: Values,
        watched: Collection[str] = (),
        moving: bool = False,
        observed: bool = True,
    ) -> Evaluation:
        """Evaluate the level's loss and metrics with ``parameters`` in place of the levels' own; buffers do not change
        yet.

        Args:
            name: the level.
            part: its batch and draws; the caller sets all generators except the user's own.
            parameters: for each level to substitute, its variables (and optionally buffers); other levels enter
                detached.
            watched: levels whose use to report.
            moving: whether the user's own generators advance, as in an update.
            observed: whether the metrics are needed, which requires waiting for a GPU.

        Raises:
            LossError: the loss is not a scalar tensor.
            NotFiniteError: it is not finite.
        """
        compute = partial(self.problems[name].loss, self.levels)
        value, mode, substitution = self._at(name, part, parameters, compute, watched, self.compilation)
        if not moving:
            mode.restore_generators()
        loss, metrics = self._split(name, value)
        metrics = metrics if observed else {}
        with torch._C.DisableTorchFunction():
            tensors = {key: metric for key, metric in metrics.items() if isinstance(metric, Tensor)}
            number, *read = scalar_values([loss, *tensors.values()])
        metrics |= zip(tensors, read, strict=True)
        if replicas.count() == 1:  # what only one rank sees, all ranks see in the means
            check_finite(name, number)
        floats = {key: float(metric) for key, metric in metrics.items()}
        touched, used = frozenset(mode.touched), frozenset(mode.used)
        moving_parameters = self.problems[name].moving
        return Evaluation(loss, number, floats, touched, used, mode.uses_replaced, substitution, moving_parameters)

    def loss(
        self, name: str, part: RecordedBatch, parameters: Values, move_buffers: bool = False
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss and metrics of ``evaluate``; with ``move_buffers`` this level's buffers change, as in an update."""
        evaluation = self.evaluate(name, part, parameters, moving=move_buffers)
        if move_buffers:
            evaluation.move_buffers(name)
        return evaluation.loss, evaluation.metrics

    def replay(self, name: str, part: RecordedBatch, parameters: Values) -> Tensor:
        """The loss of a recorded part with the same random draws; generators and buffers do not change.

        Nothing is compiled, since compiled functions may have no second derivatives. With several ranks, the value is
        this rank's, but derivatives with respect to ``parameters`` are those of the mean over ranks.
        """
        value = self._replayed(name, part, parameters, partial(self.problems[name].loss, self.levels))
        return self._checked(name, value)

    def outputs(self, name: str, part: RecordedBatch, parameters: Values) -> tuple[list[Tensor], RandomState]:
        """The outputs of a level on a recorded part, and the generators' state at the start of its criterion."""
        after = part.state

        def outputs(batch: Any, draws: Any) -> Any:
            nonlocal after
            result = self.problems[name].outputs(self.levels, batch, draws)
            with torch._C.DisableTorchFunction():
                after = RandomState.capture()
            return result

        result = self._replayed(name, part, parameters, outputs)
        return [result] if isinstance(result, Tensor) else list(result), after

    def criterion(
        self, name: str, part: RecordedBatch, outputs: Sequence[Tensor], parameters: Values, state: RandomState
    ) -> Tensor:
        """The loss of a level's outputs."""
        value = outputs[0] if len(outputs) == 1 else list(outputs)
        criterion = partial(self.problems[name].criterion, value, self.levels)
        return self._checked(name, self._replayed(name, replace(part, state=state), parameters, criterion))

    def to_precision(self, part: RecordedBatch) -> RecordedBatch:
        """Cast a part to this evaluator's precision."""
        if self.precision != REFERENCE_PRECISION:
            return part
        return replace(part, batch=map_tensors(_doubled, part.batch), draws=map_tensors(_doubled, part.draws))

    @property
    def casts(self) -> bool:
        """Whether parameters are evaluated in another dtype than their own."""
        return self._cast is not None

    def cast(self, tensors: Tensors) -> dict[str, Tensor]:
        """Parameters in this evaluator's precision."""
        return dict(tensors) if self._cast is None else {name: self._cast(value) for name, value in tensors.items()}

    def record(self, name: str, batch: Any, state: RandomState | None = None) -> RecordedBatch:
        """Draw what the loss of ``batch`` needs from the generators in their current state, and record it.

        Args:
            name: the level.
            batch: a batch of its data.
            state: the generators' state, if known.
        """
        if getattr(self.problems[name].draw, "__func__", None) is Problem.draw:
            return RecordedBatch(batch, None, state or RandomState.capture())
        batch = fresh(batch)  # writes by draw affect only the loss
        with self.modules.substitution({}, self._cast), torch.no_grad(), self._autocast(name):
            draws = self.problems[name].draw(self.levels, batch)
        return RecordedBatch(batch, draws, RandomState.capture())

    def arithmetic(self, parameters: Iterable[Tensor]) -> torch.dtype:
        """The coarsest dtype in the computation of a loss of ``parameters``."""
        if self.precision == "bf16":
            return torch.bfloat16
        dtypes = {parameter.dtype for parameter in parameters}
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)

    def detached(self, name: str) -> dict[str, Tensor]:
        """The level's variables at the current point, detached."""
        variables = {key: variable.detach() for key, variable in self.problems[name].variables().items()}
        return variables if self._cast is None else self.cast(variables)

    def _replayed(self, name: str, part: RecordedBatch, parameters: Values, compute: Callable[[Any, Any], Any]) -> Any:
        with part.state.active():
            value, mode, _ = self._at(name, part, replicated(parameters, self.problems), compute)
            mode.restore_generators()
        return value

    def _at(
        self,
        name: str,
        part: RecordedBatch,
        parameters: Values,
        compute: Callable[[Any, Any], Any],
        watched: Collection[str] = (),
        compilation: Compilation | None = None,
    ) -> tuple[Any, LossMode, Substitution]:
        """Call ``compute(batch, draws)`` while the modules hold the substitutes."""
        problem = self.problems[name]
        with torch._C.DisableTorchFunction():
            cast = self.to_precision(part)
            first = problem.writes_to_batch is None
            moving = None if first else {level: peer.moving for level, peer in self.problems.items()}
            substitution = self.modules.substitution(parameters, self._cast, problem.takes_gradients, moving)
            watching = {}
            if watched:
                watching = {id(value): level for level in watched for value in substitution.substitutes(level)}
            storages = substitution.storages() if first else {}
            mode = LossMode(substitution, part.generators, watching, storages, problem.takes_gradients)
            tensors: list[Tensor] = []  # the loss may remove them from their containers
            batch, draws = fresh((cast.batch, cast.draws), problem.writes_to_batch is not False, tensors)
            before = versions(tensors)

        try:
            with substitution, RecomputedWithin(substitution):
                if is_as_written() and torch.is_grad_enabled() and self.precision != "bf16":
                    with mode:
                        value = compute(batch, draws)
                else:
                    modules = self.modules.modules
                    compiled = compilation.installed(name, modules, mode) if compilation else as_written()
                    with torch.enable_grad(), compiled, mode, self._autocast(name):
                        value = compute(batch, draws)
        except (RuntimeError, GradientGraphError, GradientsWantedError) as error:
            if isinstance(error, RuntimeError) and (
                problem.takes_gradients or "does not require grad" not in str(error)
            ):
                raise
            problem.takes_gradients |= not isinstance(error, GradientGraphError)  # from now on
            mode.restore_generators()
            part.state.restore()
            return self._at(name, part, parameters, compute, watched, compilation)
        with torch._C.DisableTorchFunction():
            batch_written, written = before != versions(tensors), substitution.written()
            if first:
                written += [*substitution.differing(), *map(storages.__getitem__, mode.written)]
                written += [storages[address] for address in storages.keys() - substitution.storages().keys()]
        if first or batch_written or written or substitution.added:
            self._check_writes(problem, substitution.added, written, first, batch_written)
        return value, mode, substitution

    def _check_writes(
        self, problem: Problem, added: Sequence[str], written: Collection[Variable], first: bool, batch: bool
    ) -> None:
        """Record in the first evaluation whether a loss writes to its batch or to parameters, and check later ones
        against it.

        Raises:
            LossError: the loss writes to a trained parameter, to a new buffer, or to something that it did not write to
                at first.
        """
        label = f"the loss of level {problem.name!r}"
        if added:
            raise LossError(
                f"{label} registers {added[0]!r} in a module: register it in __init__, or call the module once before "
                "creating the graph"
            )
        for variable in written:
            trained, moving = variable.current, self.problems[variable.level].moving
            later = "" if first or variable.name in moving else ", which it did not do before"
            if later or (trained is not None and trained.requires_grad):
                raise LossError(
                    f"{label} writes to the parameter {variable.name!r} of level {variable.level!r}{later}, but one "
                    "update evaluates it several times: write to it in a step hook of the optimizer, or in "
                    "Callback.on_update"
                )
            moving.add(variable.name)
        if first:
            problem.writes_to_batch = batch
        elif batch and not problem.writes_to_batch:
            raise LossError(f"{label} changes its batch in place, which it did not do before: clone what it changes")

    def _checked(self, name: str, value: Any) -> Tensor:
        loss, _ = self._split(name, value)
        if replicas.count() == 1:
            with torch._C.DisableTorchFunction():  # reads here do not belong to the loss
                check_finite(name, loss.item())
        return loss

    def _split(self, name: str, value: Any) -> tuple[Tensor, dict[str, Any]]:
        """Split what a level's loss returned into loss and metrics."""
        with torch._C.DisableTorchFunction():
            loss, metrics = split(name, value)
            if not isinstance(loss, Tensor) or loss.ndim != 0:
                raise LossError(f"the loss of level {name!r} must be a scalar tensor; got {describe(loss)}")
        return loss, metrics

    @contextmanager
    def _autocast(self, name: str) -> Iterator[None]:
        if self.precision != "bf16":
            yield
            return
        with torch.autocast(module_device(self.problems[name].module).type, dtype=torch.bfloat16), AutocastAttention():
            yield


def check_finite(name: str, loss: float) -> None:
    """Raise NotFiniteError for a loss of level ``name`` that is inf or nan."""
    if not math.isfinite(loss):
        raise NotFiniteError(
            f"the loss of level {name!r} is {loss}: lower its learning rate, clip its gradient, or look at its data"
        )


def replicated(parameters: Values, problems: Mapping[str, Problem]) -> Values:
    """``averaging`` of each level's parameters; buffers among them have no derivative and may be written to."""
    if replicas.count() == 1:
        return parameters
    result: dict[str, Tensors] = {}
    for level, tensors in parameters.items():
        buffers = {name for name, _ in problems[level].module.named_buffers()}
        moving = {name: tensor for name, tensor in tensors.items() if name not in buffers}
        result[level] = {**tensors, **replicas.averaging(moving)}
    return result


def _move(buffers: Sequence[tuple[Variable, Tensor | None]]) -> None:
    """Set buffers to their new values, averaged over ranks unless they are integers."""
    pairs = []
    for variable, moved in buffers:
        buffer = variable.current
        if buffer is None or moved is None or buffer.shape != moved.shape:  # a forward pass has replaced the buffer
            variable.put(None if moved is None else moved.detach())
        else:
            pairs.append((buffer, moved.detach()))
    if replicas.count() > 1:
        fractions = [index for index, (_, moved) in enumerate(pairs) if moved.is_floating_point()]
        # means of differences keep unchanged buffers bit for bit
        means = replicas.mean([pairs[index][1] - pairs[index][0] for index in fractions])
        for index, difference in zip(fractions, means, strict=True):
            buffer, _ = pairs[index]
            pairs[index] = (buffer, buffer + difference)
    for buffer, moved in pairs:
        buffer.copy_(moved)


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def module_device(module: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
