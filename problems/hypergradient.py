"""Computes the hypergradient of a level: its direct gradient, and one adjoint pass over the levels below it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.recorded_batch import RecordedBatch, RecordedBatches, Values
from multilevel.problems.evaluation.substitution import marked
from multilevel.problems.graph import Graph
from multilevel.problems.history import LevelHistory
from multilevel.problems.nested import NestedSystem, summary
from multilevel.problems.ordered_updates import PathCotangents
from multilevel.problems.recording import RecordedUpdate, identical
from multilevel.solvers import LowerLevel, Prediction, ProductChoice, SolveError, Solver, SolveReport, Step
from multilevel.solvers.gradients import keyed
from multilevel.solvers.update_rules import KINDS, UpdateRule, known
from multilevel.solvers.vectors import Tensors

Gradients = dict[str, dict[str, Tensor]]
#: By (level, variable); None if the loss does not depend on the variable.
Total = dict[tuple[str, str], Tensor | None]


def differentiated(graph: Graph, name: str) -> tuple[str, ...]:
    """The levels in whose variables the loss of ``name`` is differentiated: its own, and those that its hypergradient
    passes through."""
    return (name, *(level for level in graph.passes(name) if level in graph.reads[name]))


def differentiable_variables(evaluator: Evaluator, levels: Iterable[str]) -> Gradients:
    """The variables of ``levels``, detached and requiring a gradient."""
    return {
        level: {key: marked(value.requires_grad_()) for key, value in evaluator.detached(level).items()}
        for level in levels
    }


def mean_gradient(total: Total, count: int, like: Gradients) -> Total:
    """The mean of a gradient with respect to ``like`` over the ``count`` parts of a batch, given their sum, and over
    ranks; None for variables that nothing depends on on any rank."""
    if count > 1:
        total = {key: None if value is None else value / count for key, value in total.items()}
    if replicas.count() == 1:
        return total
    leaves = keyed(like)
    forms = replicas.forms(leaves[key] for key in total)
    return dict(zip(total, replicas.mean_present(list(total.values()), forms), strict=True))


def mean_values(values: list[tuple[float, dict[str, float]]]) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics over the parts of a batch and over ranks; a metric that some do not have is averaged over
    the others."""
    losses: list[float] = []
    numbers: dict[str, list[float]] = {}
    for loss, metrics in chain.from_iterable(replicas.gather(values)):
        losses.append(loss)
        for key, value in metrics.items():
            numbers.setdefault(key, []).append(value)
    return sum(losses) / len(losses), {key: sum(row) / len(row) for key, row in numbers.items()}


@dataclass(frozen=True)
class Hypergradient:
    """A hypergradient and its solves.

    Attributes:
        values: for each variable of the level, a tensor of its shape.
        reports: the report on the solve of each level that it passed through.
        solutions: solutions at the levels whose solver keeps its solution for the next solve.
    """

    values: Tensors
    reports: Mapping[str, SolveReport]
    solutions: Mapping[str, Tensors]


def adjoint_pass(
    graph: Graph,
    evaluator: Evaluator,
    records: Mapping[str, RecordedBatches],
    name: str,
    direct: Gradients,
    histories: Mapping[str, LevelHistory],
    starts: Mapping[str, Tensors],
    solvers: Mapping[str, Solver],
    observe: Callable[[str, Tensors], None] | None = None,
) -> Hypergradient:
    """Add the contributions through the levels below ``name`` to its direct gradient.

    The adjoint pass: every level p below keeps a cotangent a_p that starts at the direct gradient with respect to its
    variables; it is solved once, after every level that reads it, and passes on its contributions. Levels that read
    each other are solved together, see ``NestedSystem``. Solvers that count updates may need several solves at a level,
    see ``PathCotangents``.

    Args:
        graph: the levels.
        evaluator: evaluates their losses.
        records: the record of the last update of every level on the way.
        name: the level whose hypergradient it is.
        direct: the direct gradient of its loss for each level of ``differentiated``.
        histories: the history of every level.
        starts: the last solution of each level whose solver starts from it.
        solvers: the solvers of the levels on the way.
        observe: called with each solved level and the cotangent that arrived there.
    """
    paths = PathCotangents(graph, name, direct, solvers)
    reports: dict[str, SolveReport] = {}
    solutions: dict[str, Tensors] = {}
    waiting = list(graph.passes(name))

    def lower(level: str, read_levels: Collection[str]) -> LowerLevel:
        count = solvers[level].recorded_steps
        optimizer = graph.problems[level].optimizer
        if count and optimizer is not None and not known(optimizer):
            replaced = ", whose step was replaced" if type(optimizer) in KINDS else ""
            raise SolveError(
                f"level {level!r}: an unrolled solver differentiates plain SGD, Adam or AdamW updates; the level is "
                f"trained with {type(optimizer).__name__}{replaced}"
            )
        updates = list(histories[level].updates)[-count:] if count else []
        choice = histories[level].products
        return lower_level(evaluator, records[level], level, read_levels, updates, starts.get(level), choice)

    for block in graph.blocks(name):
        exact = block.inner and graph.treats_exactly(block)
        for levels in [block.levels] if exact else [(level,) for level in block.levels]:
            waiting = [level for level in waiting if level not in levels]
            read_levels = sorted({read for level in levels for read in graph.reads[level] if read in (*waiting, name)})
            taken = paths.take(levels, read_levels)
            if exact and taken:
                system = NestedSystem(
                    block, {level: lower(level, ()) for level in levels}, evaluator, read_levels, records, solvers
                )
            for counted, arriving in taken:
                contributions: Mapping[str, Tensors]
                if exact:
                    contributions, block_reports = system.respond(arriving)
                    reports |= block_reports
                else:
                    (level,) = levels
                    response = solvers[level].respond(lower(level, read_levels), arriving[level])
                    contributions, report = response.contributions, response.report
                    reports[level] = summary([reports[level], report]) if level in reports else report
                    if response.solution is not None and len(taken) == 1:  # no start suits several cotangents
                        solutions[level] = response.solution
                if observe is not None:
                    for level, cotangent in arriving.items():
                        observe(level, cotangent)
                paths.add(counted, contributions)
    return Hypergradient(paths.total(), reports, solutions)


def lower_level(
    evaluator: Evaluator,
    record: RecordedBatches,
    level: str,
    read_levels: Collection[str],
    updates: Sequence[RecordedUpdate] = (),
    start: Tensors | None = None,
    choice: ProductChoice | None = None,
) -> LowerLevel:
    """The solver's view of a level at the current point, with its recorded batch, draws and generator state."""
    problem, parameters, predictions = evaluator.problems[level], evaluator.detached(level), None
    if problem.declares_outputs:
        predictions = [_prediction(evaluator, level, evaluator.to_precision(part)) for part in record]
    return LowerLevel(
        recorded_losses(evaluator, record, level),
        parameters,
        {read: evaluator.detached(read) for read in read_levels},
        evaluator.arithmetic(parameters.values()),
        predictions,
        UpdateRule.of(problem.optimizer, problem.variables(), problem.clip_norm),
        recorded_steps(evaluator, level, updates) if updates else (),
        start,
        choice or ProductChoice(),
        level,
    )


def recorded_steps(evaluator: Evaluator, level: str, updates: Sequence[RecordedUpdate]) -> list[Step]:
    """A level's last updates, for its solver to differentiate.

    Raises:
        SolveError: the level's parameters were changed in a way that cannot be differentiated.
    """
    starts = [update.step.parameters for update in updates[1:]]
    for update, start in zip(updates, [*starts, evaluator.problems[level].variables()], strict=False):
        reason = update.unfollowed
        if not reason and not all(identical(update.end[name], start[name]) for name in start if name in update.end):
            reason = "its parameters were changed after an update, outside of its optimizer's hooks and on_update"
        if reason:
            raise SolveError(f"level {level!r}: an unrolled solver cannot differentiate an update: {reason}")
    return [
        replace(update.step, losses=recorded_losses(evaluator, update.record, level, update.buffers))
        for update in updates
    ]


def recorded_losses(
    evaluator: Evaluator, record: RecordedBatches, level: str, buffers: Sequence[Values] | None = None
) -> list[Callable[..., Tensor]]:
    """The level's objective on each part of a record, as a function of (parameters, parameters of each level read).

    With ``buffers``, for each part of the level and the levels read, these replace the levels' own.
    """
    sign = evaluator.problems[level].sign

    def loss(part: RecordedBatch, start: Values, parameters: Tensors, reads: Values) -> Tensor:
        # a loss may write to its buffers, such as running statistics
        copies = {name: {key: buffer.clone() for key, buffer in tensors.items()} for name, tensors in start.items()}
        variables = {level: parameters, **reads}
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
