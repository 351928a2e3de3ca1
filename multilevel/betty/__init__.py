"""The bridge to Betty (docs/from_betty.md): its engine for graphs of this project, and graphs from its problems.

Raises BettyMissingError, an ImportError, if betty-ml is not installed; the message has the command that installs it.
"""

from multilevel.betty.conversion import from_betty
from multilevel.betty.engine import BettyEngine
from multilevel.betty.solvers import BETTY_SOLVERS, BettyError, BettyMissingError, Cg, Darts, Neumann

__all__ = ["BETTY_SOLVERS", "BettyEngine", "BettyError", "BettyMissingError", "Cg", "Darts", "Neumann", "from_betty"]
