"""Betty's hypergradient methods as settings, and their counterparts here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from multilevel.solvers import ConjugateGradient, FiniteDifference, Identity, Neumann, Solver
from multilevel.solvers.errors import MultilevelError, SettingError

BETTY_COMMAND = "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"


class BettyError(MultilevelError):
    """Betty cannot do what this project asks for, or the reverse."""


class BettyMissingError(BettyError, ImportError):
    """betty-ml is not installed; the message has the command that installs it."""


@dataclass
class BettySolver:
    """How Betty passes a hypergradient through a level; the fields are those of its ``Config``.

    Args:
        held: Betty's evaluations of the loss replay the draws and dropout of the level's last update and leave buffers
            unchanged, as here. False: each evaluation draws again and moves running statistics, as Betty does by
            default.
    """

    type: ClassVar[str]
    held: bool = field(default=True, kw_only=True)

    @property
    def products(self) -> int:
        """Products of second derivatives in one solve."""
        return 1 + getattr(self, f"{self.type}_iterations", 0)

    def config(self) -> dict[str, Any]:
        """The keywords of Betty's ``Config``."""
        names = [option.name for option in fields(self) if option.name.startswith(f"{self.type}_")]
        return {"type": self.type, **{name: getattr(self, name) for name in names}}


@dataclass
class Darts(BettySolver):
    """``finite_difference`` with a radius that does not depend on the parameters."""

    type = "darts"
    darts_alpha: float = 0.01


@dataclass
class BettyNeumann(BettySolver):
    """``neumann`` with one more term than iterations, and without a check for a diverging series.

    Args:
        damping: added to the Hessian's diagonal, by a penalty on the distance to the point; Betty has no damping.
    """

    type = "neumann"
    neumann_iterations: int = 1
    neumann_alpha: float = 1.0
    damping: float = 0.0


@dataclass
class Cg(BettySolver):
    """``conjugate_gradient``, right only in its first iteration (docs/from_betty.md).

    Args:
        damping: as for ``BettyNeumann``.
    """

    type = "cg"
    cg_iterations: int = 1
    cg_alpha: float = 1.0
    damping: float = 0.0


#: By their names in ``multilevel compare``.
BETTY_SOLVERS: dict[str, type[BettySolver]] = {f"betty/{solver.type}": solver for solver in (Darts, BettyNeumann, Cg)}


def betty_solver(solver: Solver | None, level: str) -> BettySolver:
    """Betty's counterpart of a solver of this project; Betty's defaults stand in for a radius or step size of None.

    Raises:
        SettingError: Betty has no counterpart.
    """
    if isinstance(solver, Identity) and solver.scale == 1 and solver.product in ("auto", "finite_difference"):
        return Darts() if solver.radius is None else Darts(solver.radius)
    plain = getattr(solver, "product", None) == "reverse"
    if isinstance(solver, Neumann) and plain:
        alpha = {} if solver.step_size is None else {"neumann_alpha": solver.step_size}
        return BettyNeumann(solver.terms - 1, damping=solver.damping, **alpha)
    if isinstance(solver, ConjugateGradient) and plain and solver.curvature == "hessian" and not solver.warm_start:
        return Cg(solver.iterations, damping=solver.damping)
    known = "identity, finite_difference, neumann or conjugate_gradient with product=reverse: Betty has only these"
    raise SettingError(f"levels.{level}.solver", str(solver), known)


def solver_of_config(config: Any, level: str) -> Solver:
    """The solver here for a Betty ``Config``: equal where Betty is right.

    Raises:
        BettyError: no solver here matches it.
    """
    if config.type == "darts" and not config.darts_multitask:
        return FiniteDifference(radius=config.darts_alpha)
    if config.type == "neumann":
        return Neumann(config.neumann_iterations + 1, config.neumann_alpha)
    if config.type == "cg":  # cg_alpha scales the system but not its solution
        return ConjugateGradient(config.cg_iterations)
    setting = "darts_multitask=True" if config.type == "darts" else f"type={config.type!r}"
    raise BettyError(f"problem {level!r}: no solver here matches Betty's {setting}; name one: solvers={{...}}")
