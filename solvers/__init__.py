"""Hypergradient solvers, one file each; they depend only on torch, not on problems, levels or recipes."""

from __future__ import annotations

import sys
from typing import Any

from multilevel.solvers.base import Response, Solver, SolveReport
from multilevel.solvers.errors import CotangentError, DataError, MultilevelError, ProductError, SettingError, SolveError
from multilevel.solvers.linear_system import ImplicitSolver, Solution
from multilevel.solvers.lower_level import LowerLevel, Prediction, ProductChoice, Step
from multilevel.solvers.registry import discover

#: Every solver by its name in configuration, which is the name of its file.
SOLVERS: dict[str, type[Solver]] = discover(sys.modules[__name__], Solver)  # type: ignore[type-abstract]


def default_solver() -> Solver:
    """The default solver of a level that others depend on, in Python and in configuration.

    Examples:
        >>> print(default_solver())
        Identity()
    """
    return SOLVERS["identity"]()


__all__ = [
    "SOLVERS",
    "CotangentError",
    "DataError",
    "ImplicitSolver",
    "LowerLevel",
    "MultilevelError",
    "Prediction",
    "ProductChoice",
    "ProductError",
    "Response",
    "SettingError",
    "Solution",
    "SolveError",
    "SolveReport",
    "Solver",
    "Step",
    "default_solver",
]
__all__ += [solver.__name__ for solver in SOLVERS.values()]


def __getattr__(name: str) -> Any:
    for solver in SOLVERS.values():
        if solver.__name__ == name:
            return solver
    raise AttributeError(f"multilevel.solvers has no {name}; its solvers: {', '.join(SOLVERS)}")
