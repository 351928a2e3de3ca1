"""Computes the hypergradient of a level: its direct gradient, and one adjoint pass over the levels below it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.substitution import marked
from multilevel.problems.graph import Graph
from multilevel.problems.lower_levels import SolverViews
from multilevel.problems.nested import NestedSystem, summary
from multilevel.problems.ordered_updates import PathCotangents
from multilevel.solvers import SolveReport
from multilevel.solvers.gradients import keyed
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
    views: SolverViews, name: str, direct: Gradients, observe: Callable[[str, Tensors], None] | None = None
) -> Hypergradient:
    """Add the contributions through the levels below ``name`` to its direct gradient.

    The adjoint pass: every level p below keeps a cotangent a_p that starts at the direct gradient with respect to its
    variables; it is solved once, after every level that reads it, and passes on its contributions. Levels that read
    each other are solved together, see ``NestedSystem``. Solvers that count updates may need several solves at a level,
    see ``PathCotangents``.

    Args:
        views: of the levels on the way.
        name: the level whose hypergradient it is.
        direct: the direct gradient of its loss for each level of ``differentiated``.
        observe: called with each solved level and the cotangent that arrived there.
    """
    graph, solvers = views.graph, views.solvers
    paths = PathCotangents(graph, name, direct, solvers)
    reports: dict[str, SolveReport] = {}
    solutions: dict[str, Tensors] = {}
    waiting = list(graph.passes(name))

    for block in graph.blocks(name):
        exact = block.inner and graph.treats_exactly(block)
        for levels in [block.levels] if exact else [(level,) for level in block.levels]:
            waiting = [level for level in waiting if level not in levels]
            read_levels = sorted({read for level in levels for read in graph.reads[level] if read in (*waiting, name)})
            taken = paths.take(levels, read_levels)
            if exact and taken:
                lowers = {level: views.of(level, ()) for level in levels}
                system = NestedSystem(block, lowers, views.evaluator, read_levels, views.records, solvers)
            for counted, arriving in taken:
                contributions: Mapping[str, Tensors]
                if exact:
                    contributions, block_reports = system.respond(arriving)
                    reports |= block_reports
                else:
                    (level,) = levels
                    response = solvers[level].respond(views.of(level, read_levels), arriving[level])
                    contributions, report = response.contributions, response.report
                    reports[level] = summary([reports[level], report]) if level in reports else report
                    if response.solution is not None and len(taken) == 1:  # no start suits several cotangents
                        solutions[level] = response.solution
                if observe is not None:
                    for level, cotangent in arriving.items():
                        observe(level, cotangent)
                paths.add(counted, contributions)
    return Hypergradient(paths.total(), reports, solutions)
