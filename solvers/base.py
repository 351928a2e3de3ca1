"""What a hypergradient solver is given, and what it returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from multilevel.solvers.differentiation import differentiating
from multilevel.solvers.errors import CotangentError, SettingError, SolveError
from multilevel.solvers.products import PRODUCTS, ProductChoice, Products
from multilevel.solvers.steps import Step
from multilevel.solvers.update_rules import UpdateRule
from multilevel.solvers.vectors import Tensors, flatten, magnitude, scaled, unflatten, zeros_like

Loss = Callable[[Tensors, Mapping[str, Tensors]], Tensor]


@dataclass(frozen=True)
class Prediction:
    """A loss in two parts, for Gauss-Newton products: on one part of a batch.

    Attributes:
        outputs: (parameters, parameters of each level read) to what the level computes, tensors of any shape.
        criterion: (outputs, parameters of each level read) to the loss; convex in the outputs.
    """

    outputs: Callable[[Tensors, Mapping[str, Tensors]], Sequence[Tensor]]
    criterion: Callable[[Sequence[Tensor], Mapping[str, Tensors]], Tensor]


@dataclass(frozen=True)
class LowerLevel:
    """A lower level as its solver sees it: a function of its parameters and of those of the levels it reads.

    Attributes:
        losses: the level's loss on each part of its last batch; their mean is the objective. Each is called
            with (parameters, parameters of each level read), replays its random draws, and returns a scalar.
        parameters: the trained parameters at the current point, detached.
        reads: for every level read that is being differentiated, its trained parameters, detached.
        arithmetic: dtype in which the loss computes (bfloat16 under such an autocast), for finite differences.
        predictions: the same losses in two parts each; None where the level does not say.
        rule: the optimizer's next update; None where the level has no optimizer that can be differentiated.
        steps: the level's last updates, oldest first; as many as the solver asked to have recorded, or fewer.
        start: the solution of the last solve, where the solver asks for it; None at the first.
        choice: which products ``product=auto`` takes, kept from solve to solve.
        name: the level's, to tell it by.
    """

    losses: Sequence[Loss]
    parameters: Tensors
    reads: Mapping[str, Tensors]
    arithmetic: torch.dtype = torch.float32
    predictions: Sequence[Prediction] | None = None
    rule: UpdateRule | None = None
    steps: Sequence[Step] = ()
    start: Tensors | None = None
    choice: ProductChoice = field(default_factory=ProductChoice)
    name: str = ""


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
        choice: the solver or the products that ``auto`` took, and why; empty elsewhere.
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
    """A solver's result: what to add to the cotangent of each level read (same names and shapes), and a report.

    ``solution`` is what the next solve may start from; None where the solver keeps nothing.
    """

    contributions: Mapping[str, Tensors]
    report: SolveReport
    solution: Tensors | None = None


def at_unit_scale(respond: Callable[[Any, LowerLevel, Tensors], Response]) -> Callable[..., Response]:
    """A solver's ``respond`` for a cotangent of any scale, in code that runs without gradients too.

    The cotangent and the level's start are divided by the power of two at the cotangent's largest absolute value, and
    the response multiplied by it: exact, and no square within over- or underflows.
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
    """The power of two by which a cotangent is divided, see ``magnitude``; CotangentError where it is not finite."""
    scale = magnitude(cotangent)
    if not math.isfinite(scale):
        raise CotangentError(
            "the cotangent of a lower level is not finite: the loss above it has a gradient of inf or nan"
        )
    return scale


def no_response(lower: LowerLevel, choice: str = "") -> Response:
    """What every solver returns for a cotangent of 0, and where there is no level to hand anything on to."""
    zeros = {name: zeros_like(tensors) for name, tensors in lower.reads.items()}
    return Response(zeros, SolveReport(residual=0.0, converged=True, choice=choice))


class Solver(ABC):
    """Maps a lower level and a cotangent to a contribution for each level that the lower level reads.

    With lower loss g, parameters p and cotangent a, the exact contribution to a level r is
    ``- d/dr <dg/dp, lambda>`` with ``H lambda = a``, H the Hessian of g in p (implicit function theorem).
    A solver is one dataclass in a file named after it; its fields are its settings.

    A response is linear in the cotangent. Every subclass's ``respond`` therefore sees a cotangent whose largest
    absolute value is about 1, never one of 0 or that is not finite, see ``at_unit_scale``.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "respond" in vars(cls):
            cls.respond = at_unit_scale(cls.respond)  # type: ignore[method-assign]

    @property
    def recorded_steps(self) -> int:
        """How many of the level's last updates it needs to see."""
        return 0

    @property
    def nests(self) -> bool:
        """Whether it can solve with the Hessian of a total gradient, which levels that read each other need."""
        return False

    def resolved(self, lower: LowerLevel) -> tuple[Solver, str]:
        """The solver that does the work for this level, and why; itself, unless it chooses among others."""
        return self, ""

    @abstractmethod
    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        """Contribution for each level in ``lower.reads``; nothing of ``lower`` is written to.

        Args:
            lower: the level to go through.
            cotangent: the derivative arriving at the level's parameters, same names and shapes.

        Raises:
            CotangentError: the cotangent is not finite.
            SolveError: the solve failed and the solver is strict; or this is inference mode.
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


@dataclass(frozen=True)
class LinearSystem:
    """``(H + damping I) x = a`` at one lower level.

    Attributes:
        product: the damped Hessian (or what stands for it) times a vector, [N] -> [N].
        right_hand_side: the cotangent a [N], finite and not 0.
        lower: the level.
        products: of the level, for what the solve needs besides.
        start: the last solution [N], where there is one.
    """

    product: Callable[[Tensor], Tensor]
    right_hand_side: Tensor
    lower: LowerLevel
    products: Products
    start: Tensor | None = None

    def residual(self, x: Tensor) -> float:
        """``|H x - a| / |a|``, damping included, at the cost of a product."""
        return ((self.product(x) - self.right_hand_side).norm() / self.right_hand_side.norm()).item()


@dataclass
class ImplicitSolver(Solver):
    """A solver that solves ``(H + damping I) x = a`` in some way and forms one mixed product with x.

    Args:
        product: how products are formed: reverse (over reverse; exact), forward (and reverse combined; exact, and
            no graph of the gradient kept), finite_difference, or auto (the first of forward, reverse and
            finite_difference that the loss's operators allow).
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

    @property
    def nests(self) -> bool:
        return True

    @property
    def keeps_solution(self) -> bool:
        """Whether the next solve of the level wants this one's solution."""
        return False

    @abstractmethod
    def solve(self, system: LinearSystem) -> Solution:
        """Solve for x [N]."""

    def curved(self, products: Products) -> Callable[[Tensors], Tensors]:
        """What is multiplied with where the Hessian stands in the definition."""
        return products.hessian

    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        products = PRODUCTS[self.product](lower, self.radius)
        solution = self.checked(self.system(products, self.curved(products), flatten(cotangent)))
        mixed = products.mixed(unflatten(solution.x, lower.parameters))
        contributions = {level: {name: -value for name, value in tensors.items()} for level, tensors in mixed.items()}
        kept = unflatten(solution.x, lower.parameters) if self.keeps_solution else None
        return Response(contributions, report_of(solution, products), kept)

    def system(self, products: Products, curved: Callable[[Tensors], Tensors], right_hand_side: Tensor) -> LinearSystem:
        """The damped system for a right-hand side, ``curved`` being the undamped product."""
        lower = products.lower

        def product(vector: Tensor) -> Tensor:
            result = flatten(curved(unflatten(vector, lower.parameters)))
            return result + self.damping * vector if self.damping else result

        def product_in_float16(vector: Tensor) -> Tensor:
            scale = magnitude({"": vector}) or 1.0  # a direction that the solve has made small would underflow
            return product(vector / scale) * scale

        narrow = any(tensor.dtype == torch.float16 for tensor in lower.parameters.values())
        multiply = product_in_float16 if narrow else product
        return LinearSystem(multiply, right_hand_side, lower, products, start_of(lower))

    def checked(self, system: LinearSystem) -> Solution:
        """``solve``; a failed solve is an error where the solver is strict."""
        solution = self.solve(system)
        if solution.failed and self.strict:
            raise SolveError(f"the solve failed (strict=true): {solution.cause}")
        return solution


def start_of(lower: LowerLevel) -> Tensor | None:
    """The last solution [N]; None where there is none, or it is of other parameters: some were frozen or unfrozen."""
    shapes = {name: tensor.shape for name, tensor in lower.parameters.items()}
    if lower.start is None or {name: tensor.shape for name, tensor in lower.start.items()} != shapes:
        return None
    return flatten({name: lower.start[name] for name in lower.parameters})


def report_of(solution: Solution, products: Products) -> SolveReport:
    return SolveReport(
        evaluations=products.evaluations,
        products=products.products,
        residual=solution.residual,
        converged=solution.converged,
        cause=solution.cause,
        failed=solution.failed,
        choice=products.chosen,
    )


def at_least(setting: str, value: float, least: float) -> None:
    """Raise SettingError unless ``value >= least``."""
    if not value >= least:
        raise SettingError(f"solver.{setting}", value, f"a number >= {least}")
