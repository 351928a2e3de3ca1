"""Computes a reference hypergradient to compare others with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from multilevel.problems.engine import Engine
from multilevel.problems.evaluation.evaluator import REFERENCE_PRECISION
from multilevel.problems.hypergradient import Hypergradient
from multilevel.solvers import Dense, Minres, Solver
from multilevel.solvers.vectors import Tensors, flatten

#: With a residual above this, a result cannot serve as a reference.
LARGEST_RESIDUAL = 1e-6
DENSE_LIMIT = 1000


@dataclass(frozen=True)
class ReferenceHypergradient:
    """A hypergradient in float64.

    Attributes:
        values: for each variable of the level, a tensor of its shape.
        solver: the solver of each level on the way.
        residual: the largest residual of these levels.
    """

    values: Tensors
    solver: Mapping[str, str]
    residual: float

    @property
    def usable(self) -> bool:
        """Whether the reference is exact enough for errors against it to be meaningful."""
        return self.residual <= LARGEST_RESIDUAL


def reference_hypergradient(
    engine: Engine, name: str, dampings: Mapping[str, float], iterations: int = 1000
) -> ReferenceHypergradient:
    """The hypergradient of a level in float64: dense solves at levels with few parameters, MINRES at others.

    Args:
        engine: the engine at the current point; unchanged.
        name: the level.
        dampings: the damping of each level on the way, added to its Hessian as in the compared solvers.
        iterations: largest number of MINRES iterations at each level.
    """
    solvers: dict[str, Solver] = {}
    for level in engine.graph.passes(name):
        count = sum(value.numel() for value in engine.graph.problems[level].variables().values())
        damping = dampings.get(level) or 0.0
        if count <= DENSE_LIMIT:
            solvers[level] = Dense(limit=DENSE_LIMIT, damping=damping)
        else:
            solvers[level] = Minres(iterations, tolerance=1e-8, measure_residual=True, damping=damping)
    hypergradient = engine.solve_hypergradient(name, solvers, REFERENCE_PRECISION, whole=True)
    names = {level: type(solver).__name__.lower() for level, solver in solvers.items()}
    return ReferenceHypergradient(hypergradient.values, names, largest_residual(hypergradient) or 0.0)


def largest_residual(hypergradient: Hypergradient) -> float | None:
    """The largest residual over the levels passed; None if none was measured."""
    residuals = [report.residual for report in hypergradient.reports.values() if report.residual is not None]
    return max(residuals) if residuals else None


def agreement(hypergradient: Tensors, reference: Tensors) -> tuple[float, float]:
    """The relative error and cosine of a hypergradient against a reference."""
    vector, expected = (
        flatten({key: values[key] for key in reference}).double().cpu() for values in (hypergradient, reference)
    )
    cosine = torch.nn.functional.cosine_similarity(vector, expected, dim=0).item()
    return ((vector - expected).norm() / expected.norm()).item(), cosine
