"""What a hypergradient solver is given, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch
from torch import Tensor

from multilevel.solvers.errors import SettingError, SolveError
from multilevel.solvers.products import PRODUCTS, Products
from multilevel.solvers.vectors import Tensors, flatten, unflatten, zeros_like

Loss = Callable[[Tensors, Mapping[str, Tensors]], Tensor]


class Shared(Protocol):
    """Keeps what evaluations of a loss at several values of the level's own parameters have in common."""

    @property
    def holds_graph(self) -> bool:
        """Whether something kept depends on what is being differentiated, so that one backward pass can serve two."""

    def kept(self) -> AbstractContextManager[None]:
        """Within the block results are kept."""


class Nothing:
    """Keeps nothing."""

    holds_graph = False

    def kept(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class LowerLevel:
    """A lower level as its solver sees it: a function of its parameters and of those of the levels it reads.

    Attributes:
        losses: the level's loss on each part of its last batch; their mean is the objective. Each is called
            with (parameters, parameters of each level read), replays its random draws, and returns a scalar.
        parameters: the trained parameters at the current point, detached.
        reads: for every level read that is being differentiated, its trained parameters, detached.
        arithmetic: dtype in which the loss computes (bfloat16 under such an autocast), for finite differences.
        shared: keeps what the evaluations of one solve have in common.
    """

    losses: Sequence[Loss]
    parameters: Tensors
    reads: Mapping[str, Tensors]
    arithmetic: torch.dtype = torch.float32
    shared: Shared = field(default_factory=Nothing)


@dataclass(frozen=True)
class SolveReport:
    """What a solve spent and how well it did.

    Attributes:
        evaluations: evaluations of the lower level's loss (forward passes over the whole batch).
        products: Hessian-vector and mixed products.
        residual: ``|H x - a| / |a|``, damping included; None where it was not measured.
        converged: whether the residual met the tolerance; None where the residual was not measured.
        cause: why it did not converge and which setting to change; empty where it did.
        failed: the solve diverged or met negative curvature, and returned its last good iterate.
    """

    evaluations: int = 0
    products: int = 0
    residual: float | None = None
    converged: bool | None = None
    cause: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Response:
    """A solver's result: what to add to the cotangent of each level read (same names and shapes), and a report."""

    contributions: Mapping[str, Tensors]
    report: SolveReport


class Solver(ABC):
    """Maps a lower level and a cotangent to a contribution for each level that the lower level reads.

    With lower loss g, parameters p and cotangent a, the exact contribution to a level r is
    ``- d/dr <dg/dp, lambda>`` with ``H lambda = a``, H the Hessian of g in p (implicit function theorem).
    A solver is one dataclass in a file named after it; its fields are its settings.
    """

    @abstractmethod
    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        """Contribution for each level in ``lower.reads``; nothing of ``lower`` is written to.

        Args:
            lower: the level to go through.
            cotangent: the derivative arriving at the level's parameters, same names and shapes.

        Raises:
            SolveError: the solve failed and the solver is strict.
        """

    def __str__(self) -> str:
        """The name, and the settings that are not the default."""
        pairs = ((one, getattr(self, one.name)) for one in fields(self))  # type: ignore[arg-type]
        changed = ", ".join(f"{one.name}={value}" for one, value in pairs if value != one.default)
        return f"{type(self).__name__}({changed})"


@dataclass
class Solution:
    """An approximate solution x [N] of ``H x = a``, with its relative residual (None: not measured)."""

    x: Tensor
    residual: float | None = None
    converged: bool | None = None
    cause: str = ""
    failed: bool = False


@dataclass
class ImplicitSolver(Solver):
    """A solver that solves ``(H + damping I) x = a`` in some way and forms one mixed product with x.

    Args:
        product: how products are formed: reverse (exact, reverse over reverse) or finite_difference.
        damping: added to the Hessian's diagonal, >= 0.
        radius: norm of a finite difference's perturbation; None chooses it (see FiniteDifferenceProducts).
        strict: raise SolveError when a solve fails, instead of going on with its last good iterate.
    """

    product: str = field(default="reverse", kw_only=True)
    damping: float = field(default=0.0, kw_only=True)
    radius: float | None = field(default=None, kw_only=True)
    strict: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.product not in PRODUCTS:
            raise SettingError("solver.product", self.product, f"one of {', '.join(PRODUCTS)}")
        if not self.damping >= 0:
            raise SettingError("solver.damping", self.damping, "a number >= 0")
        if self.radius is not None and not self.radius > 0:
            raise SettingError("solver.radius", self.radius, "a number above 0, or null to have it chosen")

    @abstractmethod
    def solve(self, hessian: Callable[[Tensor], Tensor], cotangent: Tensor) -> Solution:
        """Solve for x [N], given the damped Hessian's product [N] -> [N] and a cotangent [N] that is not 0."""

    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        right_hand_side = flatten(cotangent)
        if not torch.isfinite(right_hand_side).all():
            raise SolveError(
                "the cotangent of a lower level is not finite: the loss above it has a gradient of inf or nan"
            )
        if not right_hand_side.any():
            zeros = {name: zeros_like(tensors) for name, tensors in lower.reads.items()}
            return Response(zeros, SolveReport(residual=0.0, converged=True))
        products = PRODUCTS[self.product](lower, self.radius)
        with lower.shared.kept():
            solution = self.solve(self._damped(products), right_hand_side)
            if solution.failed and self.strict:
                raise SolveError(f"the solve failed (strict=true): {solution.cause}")
            mixed = products.mixed(unflatten(solution.x, lower.parameters))
        report = SolveReport(
            evaluations=products.evaluations,
            products=products.products,
            residual=solution.residual,
            converged=solution.converged,
            cause=solution.cause,
            failed=solution.failed,
        )
        contributions = {level: {name: -value for name, value in tensors.items()} for level, tensors in mixed.items()}
        return Response(contributions, report)

    def _damped(self, products: Products) -> Callable[[Tensor], Tensor]:
        def hessian(vector: Tensor) -> Tensor:
            product = flatten(products.hessian(unflatten(vector, products.lower.parameters)))
            return product + self.damping * vector if self.damping else product

        return hessian


def at_least(setting: str, value: float, least: float) -> None:
    """Raise SettingError unless ``value >= least``."""
    if not value >= least:
        raise SettingError(f"solver.{setting}", value, f"a number >= {least}")
