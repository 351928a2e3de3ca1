"""The bridge to Betty (docs/from_betty.md): its engine for graphs of this project, and graphs from its problems.

Without betty-ml, ``BettyEngine`` and ``from_betty`` raise BettyMissingError, an ImportError whose text says how to
install it; the rest needs no Betty.
"""

import importlib
from typing import TYPE_CHECKING, Any

from multilevel.betty.solvers import BETTY_SOLVERS, BettyError, BettyMissingError, Cg, Darts
from multilevel.betty.solvers import BettyNeumann as Neumann

if TYPE_CHECKING:
    from multilevel.betty.conversion import from_betty
    from multilevel.betty.engine import BettyEngine

__all__ = ["BETTY_SOLVERS", "BettyEngine", "BettyError", "BettyMissingError", "Cg", "Darts", "Neumann", "from_betty"]


def __getattr__(name: str) -> Any:
    modules = {"BettyEngine": "engine", "from_betty": "conversion"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{modules[name]}"), name)
