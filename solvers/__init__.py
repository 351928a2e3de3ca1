"""Hypergradient solvers, one file each; they know torch and nothing of problems, levels or recipes."""

from __future__ import annotations

import sys
from typing import Any

from multilevel.solvers.base import (
    ImplicitSolver,
    LowerLevel,
    Prediction,
    Response,
    Solution,
    Solver,
    SolveReport,
    Step,
)
from multilevel.solvers.errors import CotangentError, DataError, MultilevelError, ProductError, SettingError, SolveError
from multilevel.solvers.registry import discover

#: Every solver by the name of its file, which is its name in configuration.
SOLVERS: dict[str, type[Solver]] = discover(sys.modules[__name__], Solver)  # type: ignore[type-abstract]

__all__ = [
    "SOLVERS",
    "CotangentError",
    "DataError",
    "ImplicitSolver",
    "LowerLevel",
    "MultilevelError",
    "Prediction",
    "ProductError",
    "Response",
    "SettingError",
    "Solution",
    "SolveError",
    "SolveReport",
    "Solver",
    "Step",
]
__all__ += [solver.__name__ for solver in SOLVERS.values()]


def __getattr__(name: str) -> Any:
    for solver in SOLVERS.values():
        if solver.__name__ == name:
            return solver
    raise AttributeError(f"multilevel.solvers has no {name}; its solvers: {', '.join(SOLVERS)}")
