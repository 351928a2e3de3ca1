"""The interface of a hypergradient solver, and its result."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any

from multilevel.solvers.differentiation import differentiating
from multilevel.solvers.errors import CotangentError
from multilevel.solvers.lower_level import LowerLevel
from multilevel.solvers.ranges import check
from multilevel.solvers.vectors import Tensors, magnitude, scaled, zeros_like


@dataclass(frozen=True)
class SolveReport:
    """The cost and the quality of a solve.

    Attributes:
        evaluations: evaluations of the lower level's loss (forward passes over the whole batch).
        products: Hessian-vector and mixed products.
        residual: ``|H x - a| / |a|``, damping included; None if not measured.
        converged: whether the residual met the tolerance; None if the residual was not measured.
        cause: why it did not converge and the setting to change; empty if it converged.
        failed: whether the solve diverged or met negative curvature, and returned its last good iterate.
        choice: the solver or the products that ``auto`` chose, and why; empty for others.
    """

    evaluations: int = 0
    products: int = 0
    residual: float | None = None
    converged: bool | None = None
    cause: str = ""
    failed: bool = False
    choice: str = ""


@dataclass(frozen=True)
class Response:
    """A solver's result: terms to add to the cotangents of the levels read (same names and shapes), and a report.

    ``solution`` is the starting point of the next solve; None if the solver keeps none.
    """

    contributions: Mapping[str, Tensors]
    report: SolveReport
    solution: Tensors | None = None


def at_unit_scale(respond: Callable[[Any, LowerLevel, Tensors], Response]) -> Callable[..., Response]:
    """Extends a solver's ``respond`` to cotangents of any scale, and to code that runs without gradients.

    The cotangent and the level's start are divided by the power of two at the cotangent's largest absolute value, and
    the response is multiplied by it. This is exact, and avoids over- and underflow of squares.
    """

    @wraps(respond)
    def respond_to_any(self: Solver, lower: LowerLevel, cotangent: Tensors) -> Response:
        with differentiating():
            scale = scale_of(cotangent)
            if scale == 0 or not any(lower.reads.values()):
                return no_response(lower, self.resolved(lower)[1])
            if lower.start is not None:
                lower = replace(lower, start=scaled(lower.start, 1 / scale))
            response = respond(self, lower, scaled(cotangent, 1 / scale))
            return replace(
                response,
                contributions={level: scaled(tensors, scale) for level, tensors in response.contributions.items()},
                solution=None if response.solution is None else scaled(response.solution, scale),
            )

    return respond_to_any


def scale_of(cotangent: Tensors) -> float:
    """The power of two to divide a cotangent by, see ``magnitude``; CotangentError if it is not finite."""
    scale = magnitude(cotangent)
    if not math.isfinite(scale):
        raise CotangentError(
            "the cotangent of a lower level is not finite: the loss above it has a gradient of inf or nan"
        )
    return scale


def no_response(lower: LowerLevel, choice: str = "") -> Response:
    """Zeros: every solver's response to a cotangent of 0, or at a level that reads no other."""
    zeros = {name: zeros_like(tensors) for name, tensors in lower.reads.items()}
    return Response(zeros, SolveReport(residual=0.0, converged=True, choice=choice))


class Solver(ABC):
    """Maps a lower level and a cotangent to a contribution for each level that the lower level reads.

    With lower loss g, parameters p and cotangent a, the exact contribution to a level r is ``- d/dr <dg/dp, lambda>``
    with ``H lambda = a``, where H is the Hessian of g with respect to p (implicit function theorem). A solver is one
    dataclass in a file named after it; its fields are its settings.

    A response is linear in the cotangent. The ``respond`` of every subclass therefore gets a cotangent that is finite,
    not 0, and scaled to a largest absolute value of about 1, see ``at_unit_scale``.

    Examples:
        A solver for lower levels whose Hessian is c I, on the level of ``LowerLevel``'s example:

        >>> class Scaled(ImplicitSolver):
        ...     def solve(self, system):
        ...         return Solution(system.right_hand_side / 2)
        >>> Scaled().respond(lower, cotangent).contributions["upper"]["r"]
        tensor([0.5000, 0.5000, 0.5000])
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "respond" in vars(cls):
            cls.respond = at_unit_scale(cls.respond)  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        """Raise SettingError for the first setting outside its declared range."""
        check(self, "solver.")

    @property
    def recorded_steps(self) -> int:
        """The number of the level's last updates that the solver needs."""
        return 0

    @property
    def recorded_outer_steps(self) -> int:
        """The number of the top level's last updates within which it needs them; the current one counts."""
        return 1

    @property
    def nests(self) -> bool:
        """Whether the solver can solve with the Hessian of a total gradient, which levels that read each other need."""
        return False

    @property
    def counted_outer_steps(self) -> int:
        """If a response is that of one update of the level, so that a path through the level counts once for every
        ordered choice of an update of it: the number of updates of the upper level in which to count these; else 0."""
        return 0

    def resolved(self, lower: LowerLevel) -> tuple[Solver, str]:
        """The solver to use for this level, and the reason; this solver, unless it chooses among others."""
        return self, ""

    @abstractmethod
    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        """Compute the contribution to each level in ``lower.reads``; ``lower`` is not modified.

        Args:
            lower: the level to pass through.
            cotangent: the derivative arriving at the level's parameters, same names and shapes.

        Raises:
            CotangentError: the cotangent is not finite.
            SolveError: a strict solver failed, or inference mode is active.
        """

    def __str__(self) -> str:
        """The name, and the settings that differ from the defaults."""
        pairs = ((field, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        changed = ", ".join(f"{field.name}={value}" for field, value in pairs if value != field.default)
        return f"{type(self).__name__}({changed})"
