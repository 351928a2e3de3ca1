"""The solvers' view of a level: its losses, replayed on recorded batches, as functions of parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.recorded_batch import RecordedBatch, RecordedBatches, Values
from multilevel.problems.graph import Graph
from multilevel.problems.history import LevelHistory
from multilevel.problems.problem import Problem
from multilevel.problems.recording import RecordedUpdate, identical
from multilevel.solvers import LowerLevel, Prediction, ProductChoice, SolveError, Solver, Step
from multilevel.solvers.update_rules import KINDS, UpdateRule, known
from multilevel.solvers.vectors import Tensors, scaled


@dataclass(frozen=True)
class SolverViews:
    """The views that the solvers of a hypergradient have of the levels on its way.

    Args:
        graph: the levels.
        evaluator: evaluates their losses.
        records: the record of the last update of every level on the way.
        histories: the history of every level.
        solvers: the solvers of the levels on the way.
        starts: the last solution of each level whose solver starts from it.
    """

    graph: Graph
    evaluator: Evaluator
    records: Mapping[str, RecordedBatches]
    histories: Mapping[str, LevelHistory]
    solvers: Mapping[str, Solver]
    starts: Mapping[str, Tensors]

    def of(self, level: str, read_levels: Collection[str]) -> LowerLevel:
        """The view of a level as a function of its parameters and those of ``read_levels``.

        Raises:
            SolveError: the level's updates cannot be differentiated, but its solver needs that.
        """
        history = self.histories[level]
        updates = recorded_updates(self.graph.problems[level], self.solvers[level], history)
        record, start, choice = self.records[level], self.starts.get(level), history.products
        return lower_level(self.evaluator, record, level, read_levels, updates, start, choice, history.gradient)


def lower_level(
    evaluator: Evaluator,
    record: RecordedBatches,
    level: str,
    read_levels: Collection[str],
    updates: Sequence[RecordedUpdate] = (),
    start: Tensors | None = None,
    choice: ProductChoice | None = None,
    gradient: Tensors | None = None,
) -> LowerLevel:
    """The solver's view of a level at the current point, with its recorded batch, draws and generator state."""
    problem, parameters, predictions = evaluator.problems[level], evaluator.detached(level), None
    if gradient is not None:  # of the objective, which a level that maximizes negates
        gradient = evaluator.cast(scaled(gradient, problem.sign))
    if problem.declares_outputs:
        predictions = [_prediction(evaluator, level, evaluator.to_precision(part)) for part in record]
    return LowerLevel(
        recorded_losses(evaluator, record, level),
        parameters,
        {read: evaluator.detached(read) for read in read_levels},
        evaluator.arithmetic(parameters.values()),
        predictions,
        UpdateRule.of(problem.optimizer, problem.variables(), problem.clip_norm),
        recorded_steps(evaluator, level, updates, read_levels) if updates else (),
        start,
        choice or ProductChoice(),
        level,
        gradient,
    )


def recorded_updates(problem: Problem, solver: Solver, history: LevelHistory) -> list[RecordedUpdate]:
    """The level's last updates that its solver differentiates; none if it differentiates none.

    Raises:
        SolveError: the level's optimizer has no differentiable update.
    """
    if not solver.recorded_steps:
        return []
    optimizer = problem.optimizer
    if optimizer is not None and not known(optimizer):
        replaced = ", whose step was replaced" if type(optimizer) in KINDS else ""
        raise SolveError(
            f"level {problem.name!r}: an unrolled solver differentiates plain SGD, Adam or AdamW updates; the level is "
            f"trained with {type(optimizer).__name__}{replaced}"
        )
    updates = history.within(solver.recorded_outer_steps)
    return updates[-solver.recorded_steps :]


def recorded_steps(
    evaluator: Evaluator, level: str, updates: Sequence[RecordedUpdate], read_levels: Collection[str]
) -> list[Step]:
    """A level's last updates, for its solver to differentiate.

    Raises:
        SolveError: the level's parameters were changed in a way that cannot be differentiated.
    """
    starts = [update.step for update in updates[1:]]
    now = Step((), evaluator.problems[level].variables(), {}, updates[-1].step.rule)
    for update, following in zip(updates, [*starts, now], strict=True):
        carried = [name for name in following.parameters if ("parameters", name) not in following.restarted]
        start = {name: following.parameters[name] for name in carried if name in update.end}
        reason = update.unfollowed
        if not reason and not all(identical(update.end[name], value) for name, value in start.items()):
            reason = "its parameters were changed after an update, outside of its optimizer's hooks and on_update"
        if reason:
            raise SolveError(f"level {level!r}: an unrolled solver cannot differentiate an update: {reason}")
    return [_losses_of(evaluator, level, update, read_levels) for update in updates]


def _losses_of(evaluator: Evaluator, level: str, update: RecordedUpdate, read_levels: Collection[str]) -> Step:
    """The update's step with its losses, in the evaluator's precision; levels that are read without being
    differentiated have the values that the update read."""
    step = update.step
    held = {read: evaluator.cast(tensors) for read, tensors in step.reads.items() if read not in read_levels}
    losses = recorded_losses(evaluator, update.record, level, update.buffers, held)
    if not evaluator.casts:
        return replace(step, losses=losses)
    if step.before is not None or step.after:
        raise SolveError(f"level {level!r}: changes by hooks and callbacks are differentiated only in their own dtype")
    state = {name: evaluator.cast(slots) for name, slots in step.rule.state.items()}
    reads = {read: evaluator.cast(tensors) for read, tensors in step.reads.items()}
    rule = replace(step.rule, state=state)
    return replace(step, losses=losses, parameters=evaluator.cast(step.parameters), reads=reads, rule=rule)


def recorded_losses(
    evaluator: Evaluator,
    record: RecordedBatches,
    level: str,
    buffers: Sequence[Values] | None = None,
    held: Values | None = None,
) -> list[Callable[..., Tensor]]:
    """The level's objective on each part of a record, as a function of (parameters, parameters of each level read).

    With ``buffers``, for each part of the level and the levels read, these replace the levels' own; the parameters in
    ``held`` replace those of other levels.
    """
    sign, constants = evaluator.problems[level].sign, held or {}

    def loss(part: RecordedBatch, start: Values, parameters: Tensors, reads: Values) -> Tensor:
        # a loss may write to its buffers, such as running statistics
        copies = {name: {key: buffer.clone() for key, buffer in tensors.items()} for name, tensors in start.items()}
        variables = {**constants, level: parameters, **reads}
        substituted = {name: {**variables.get(name, {}), **copies.get(name, {})} for name in {**copies, **variables}}
        value = evaluator.replay(level, part, substituted)
        return value if sign == 1 else sign * value

    parts = map(evaluator.to_precision, record)
    starts = [{}] * len(record) if buffers is None else buffers
    return [partial(loss, part, start) for part, start in zip(parts, starts, strict=True)]


def _prediction(evaluator: Evaluator, level: str, part: RecordedBatch) -> Prediction:
    after, sign = part.state, evaluator.problems[level].sign

    def outputs(parameters: Tensors, reads: Mapping[str, Tensors]) -> list[Tensor]:
        nonlocal after
        values, after = evaluator.outputs(level, part, {level: parameters, **reads})
        return values

    def criterion(values: Sequence[Tensor], reads: Mapping[str, Tensors]) -> Tensor:
        return sign * evaluator.criterion(level, part, values, reads, after)

    return Prediction(outputs, criterion)
