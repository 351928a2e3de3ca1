"""Computes a hypergradient through the updates of several levels, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.recorded_batch import RecordedBatches
from multilevel.problems.graph import Graph
from multilevel.problems.history import LevelHistory
from multilevel.problems.hypergradient import Gradients, Hypergradient
from multilevel.problems.lower_levels import lower_level, recorded_updates
from multilevel.solvers import Solver, SolveReport
from multilevel.solvers.base import scale_of
from multilevel.solvers.unrolled import UnrolledSolver
from multilevel.solvers.vectors import Tensors, scaled, shifted


def unrolled_together(graph: Graph, name: str, solvers: Mapping[str, Solver]) -> dict[str, UnrolledSolver]:
    """The solvers of the levels that a hypergradient passes through, if their updates are differentiated together: if
    there are several levels, all have the same kind of unrolled solver, and none read each other; else empty."""
    passes = graph.passes(name)
    unrolled = {level: solver for level in passes if isinstance(solver := solvers[level], UnrolledSolver)}
    alike = len(unrolled) == len(passes) > 1 and len(set(map(type, unrolled.values()))) == 1
    return unrolled if alike and not any(block.inner for block in graph.blocks(name)) else {}


def unrolled_pass(
    graph: Graph,
    evaluator: Evaluator,
    records: Mapping[str, RecordedBatches],
    name: str,
    direct: Gradients,
    histories: Mapping[str, LevelHistory],
    solvers: Mapping[str, UnrolledSolver],
    observe: Callable[[str, Tensors], None] | None = None,
) -> Hypergradient:
    """Add the derivative through the recorded updates of the levels below ``name`` to its direct gradient; arguments as
    in ``adjoint_pass``."""
    reports = {level: SolveReport(residual=0.0, converged=True) for level in solvers}
    scales = {level: scale_of(direct[level]) for level in solvers if level in direct}
    scale = max(scales.values(), default=0.0)
    if scale == 0:
        return Hypergradient(direct[name], reports, {})
    lowers = {}
    for level, solver in solvers.items():
        updates = recorded_updates(graph.problems[level], solver, histories[level])
        read_levels = [read for read in graph.reads[level] if read == name or read in solvers]
        lowers[level] = lower_level(evaluator, records[level], level, read_levels, updates)
    cotangents = {level: scaled(direct[level], 1 / scale) for level in scales if scales[level]}
    unrolling = next(iter(solvers.values())).unroll(lowers, solvers, cotangents)
    if observe is not None:
        for level, cotangent in unrolling.arrived.items():
            observe(level, scaled(cotangent, scale))
    values = shifted(direct[name], unrolling.contributions[name], scale)
    return Hypergradient(values, {**reports, **unrolling.reports}, {})
