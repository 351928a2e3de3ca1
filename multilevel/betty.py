"""The bridge to Betty (docs/from_betty.md): its engine for graphs of this project, and graphs from its problems.

Raises BettyMissingError, an ImportError, where betty-ml is not installed; the text has the command.
"""

from multilevel.problems.betty import BettyEngine
from multilevel.problems.betty_solvers import BETTY_SOLVERS, BettyError, BettyMissingError, Cg, Darts, Neumann
from multilevel.problems.from_betty import from_betty

__all__ = ["BETTY_SOLVERS", "BettyEngine", "BettyError", "BettyMissingError", "Cg", "Darts", "Neumann", "from_betty"]
