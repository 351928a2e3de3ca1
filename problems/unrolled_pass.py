"""Computes a hypergradient through the updates of several levels, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multilevel.problems.graph import Graph
from multilevel.problems.hypergradient import Gradients, Hypergradient
from multilevel.problems.lower_levels import SolverViews
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
    views: SolverViews,
    solvers: Mapping[str, UnrolledSolver],
    name: str,
    direct: Gradients,
    observe: Callable[[str, Tensors], None] | None = None,
) -> Hypergradient:
    """Add the derivative through the recorded updates of the levels below ``name`` to its direct gradient.

    Args:
        views: of the levels on the way.
        solvers: of these levels, see ``unrolled_together``.
        name: the level whose hypergradient it is.
        direct: the direct gradient of its loss for each level of ``differentiated``.
        observe: called with each differentiated level and the cotangent that arrived there.
    """
    reports = {level: SolveReport(residual=0.0, converged=True) for level in solvers}
    scales = {level: scale_of(direct[level]) for level in solvers if level in direct}
    scale = max(scales.values(), default=0.0)
    if scale == 0:
        return Hypergradient(direct[name], reports, {})
    reads = views.graph.reads
    lowers = {
        level: views.of(level, [read for read in reads[level] if read == name or read in solvers]) for level in solvers
    }
    cotangents = {level: scaled(direct[level], 1 / scale) for level in scales if scales[level]}
    unrolling = next(iter(solvers.values())).unroll(lowers, solvers, cotangents)
    if observe is not None:
        for level, cotangent in unrolling.arrived.items():
            observe(level, scaled(cotangent, scale))
    values = shifted(direct[name], unrolling.contributions[name], scale)
    return Hypergradient(values, {**reports, **unrolling.reports}, {})
