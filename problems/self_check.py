"""Compares a hypergradient's products once with products formed another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from multilevel.problems.errors import NotFiniteError
from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.recorded_batch import RecordedBatches
from multilevel.problems.graph import Graph
from multilevel.problems.lower_levels import lower_level
from multilevel.solvers import (
    FiniteDifference,
    FirstOrder,
    Identity,
    LowerLevel,
    MultilevelError,
    ProductChoice,
    ProductError,
    Sama,
    Solver,
)
from multilevel.solvers.base import scale_of
from multilevel.solvers.errors import is_out_of_memory
from multilevel.solvers.gradients import detached_leaves, filled, gradients, grouped, keyed
from multilevel.solvers.products import PRODUCTS, AutomaticProducts, Products, default_radius
from multilevel.solvers.products.stop_gradients import HeldLosses
from multilevel.solvers.vectors import Tensors, flatten, norm, scaled, shifted, total_norm, unflatten

#: Relative difference above which two forms of a product count as different.
TOLERANCE = 0.05
#: Roundings of a gradient that go unnoticed in a product: its error is about this many, divided by the radius.
ROUNDINGS = 20.0

#: A difference beyond this many spreads of a product under perturbations of a few roundings is not due to rounding.
UNLIKELY = 5.0

EXACT = ("forward", "reverse")
DIFFERENCES = "finite_difference"


class SelfCheck:
    """Makes the comparisons of a run.

    Attributes:
        names: names of the levels with compared hypergradients.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._reported: set[str] = set()

    def compare(
        self,
        graph: Graph,
        evaluator: Evaluator,
        name: str,
        level: str,
        record: RecordedBatches,
        cotangent: Tensors,
        choice: ProductChoice,
    ) -> str:
        """``check_products`` for a level that a hypergradient passes through, in at least float32.

        Also empty if no cotangent arrived at the level, or if the level was reported before.

        Args:
            graph: the levels.
            evaluator: the evaluator of the checked solve.
            name: the level whose hypergradient it is.
            level: the level that it passes through.
            record: the record of that level's last update.
            cotangent: the cotangent at that level.
            choice: the products that solves at that level have taken.
        """
        if not any(tensor.any() for tensor in cotangent.values()):
            return ""
        self.names.add(name)
        solver = graph.problems[level].solver
        if solver is None or level in self._reported:
            return ""
        # The rounding of bf16 is no fault.
        single = evaluator if evaluator.precision == "float32" else Evaluator(graph.problems)
        read_levels = [read for read in graph.reads[level] if read in (name, *graph.passes(name))]
        lower = lower_level(single, record, level, read_levels, choice=choice)
        line = check_products(level, solver, lower, cotangent)
        if line:
            self._reported.add(level)
        return line


def check_products(level: str, solver: Solver, lower: LowerLevel, cotangent: Tensors) -> str:
    """Return a line if a solver's products differ by more than 5% from another form; empty if they agree or are only
    noise.

    Exact products are compared with finite differences, and on disagreement also with the other exact form if every
    operator supports it; finite differences and ``first_order`` are compared with an exact form. All products are along
    the cotangent.

    Args:
        level: name of the level.
        solver: the solver of the level; a solver with unknown products is not checked.
        lower: the level.
        cotangent: the cotangent at the level.
    """
    solver, _ = solver.resolved(lower)
    used = _form_of(solver, lower)
    scale = scale_of(cotangent)
    if used is None or scale == 0 or not keyed(lower.reads):
        return ""
    check = _Check(level, solver, used, replace(lower, choice=ProductChoice()), scaled(cotangent, 1 / scale))
    if line := check.replay():
        return f"self-check: {line}"
    reason = ""
    for kind in ("mixed",) if isinstance(solver, Identity | Sama) else ("mixed", "hessian"):
        for form in check.other_forms:
            try:
                line = check.difference(kind, form)
            except Exception as error:  # a failed check must not end the run
                reason = reason or _in_one_line(error).partition(f": {PRODUCTS[form].remedy}")[0]
                continue
            if line:
                return f"self-check: {line}"
            break
        else:
            return f"self-check: the products at level {level!r} were not compared: {reason}"
    return ""


def _form_of(solver: Solver, lower: LowerLevel) -> str | None:
    """The form of a solver's products."""
    if isinstance(solver, FirstOrder):
        return "finite_difference"
    product = getattr(solver, "product", None)
    return AutomaticProducts(lower, getattr(solver, "radius", None)).form if product == "auto" else product


def _in_one_line(error: Exception) -> str:
    """Describe an error in one line."""
    if isinstance(error, MultilevelError):
        return str(error)
    if is_out_of_memory(error):
        return "out of memory; training continues"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass
class _Check:
    """Compares products of a solver with other forms.

    Attributes:
        level: its name.
        solver: its solver.
        used: the form of the solver's products.
        lower: the level.
        direction: the direction of the products.
    """

    level: str
    solver: Solver
    used: str
    lower: LowerLevel
    direction: Tensors

    @property
    def other_forms(self) -> list[str]:
        return [form for form in (*EXACT[::-1], DIFFERENCES) if form != self.used]

    def replay(self) -> str:
        """Report a loss that differs between two evaluations at the same point; empty if they agree."""
        for loss in self.lower.losses:
            first, second = (loss(self.lower.parameters, self.lower.reads).item() for _ in range(2))
            if abs(first - second) > self._eps() ** 0.5 * max(abs(first), abs(second)):
                return (
                    f"the loss of level {self.level!r} is {first:.6g}, then {second:.6g} at the same point: draw "
                    "random numbers in Problem.draw, or from the global generator of torch, numpy or random"
                )
        return ""

    def difference(self, kind: str, form: str) -> str:
        """Report products of one kind that differ from another form; empty if they agree."""
        used = self.used
        first = self._product(kind, used)
        if self._agrees_with_differences(kind, form, first):
            return ""
        second = self._product(kind, form)
        difference = _distance(first, second)
        if difference <= TOLERANCE or self._is_noise(kind, form, first, second):
            return ""
        differ = f"{kind} products at level {self.level!r} by {used} differ from those by {form} by {difference:.0%}"
        wrong = f"so {used} is wrong ({_why(used)}): set {self._setting(form)}"
        right = f"so {used} is right ({form}: {_why(form)})"
        third = self._third(kind, form)
        if third is not None:
            name, value = third
            limit = max(TOLERANCE, difference / 4)
            if _distance(value, second) <= limit:
                return f"{differ}; {name} agrees with {form}, {wrong}"
            if _distance(value, first) <= limit:
                return f"{differ}; {name} agrees with {used}, {right}"
        elif DIFFERENCES in (used, form):
            if not self._is_steady(kind):
                return "" if form == DIFFERENCES else f"{differ} and depend on their radius, {wrong}"
            differences, exact = (first, second) if used == DIFFERENCES else (second, first)
            confirmed = self._confirmed(kind, differences, exact)
            if confirmed is False and form == DIFFERENCES:
                return ""
            if confirmed is not None:
                verb = "agree" if confirmed else "do not agree"
                differ = f"{differ}; differences taken another way {verb} with {DIFFERENCES}"
                return f"{differ}, {right if confirmed and used == DIFFERENCES else wrong}"
        return (
            f"{differ}, and it is unclear which is right: compare reverse, forward and finite_difference on a small "
            "problem in float64"
        )

    def _agrees_with_differences(self, kind: str, form: str, product: Tensor) -> bool:
        """Whether finite differences confirm an exact product, which takes less memory than the other exact form."""
        if {self.used, form} != set(EXACT):
            return False
        try:
            return _distance(product, self._product(kind, DIFFERENCES)) <= TOLERANCE
        except (ProductError, NotFiniteError):
            return False

    def _third(self, kind: str, form: str) -> tuple[str, Tensor] | None:
        """Products in the remaining form, and its name; None if there is no other form."""
        for name in self.other_forms:
            if name != form:
                try:
                    return name, self._product(kind, name)
                except (ProductError, NotFiniteError):
                    continue
        return None

    def _setting(self, product: str) -> str:
        """The setting that makes the level's solver, or the most similar solver, form products in a given way."""
        prefix = f"levels.{self.level}.solver"
        like = {FirstOrder: "neumann", FiniteDifference: "identity"}.get(type(self.solver))
        return f"{prefix}={like} {prefix}.product={product}" if like else f"{prefix}.product={product}"

    def _radius(self) -> float:
        return getattr(self.solver, "radius", None) or default_radius(self.lower.parameters, self.lower.arithmetic)

    def _product(self, kind: str, form: str, factor: float = 1.0, moved: Tensors | None = None) -> Tensor:
        lower = self.lower if moved is None else replace(self.lower, parameters=moved)
        products: Products = PRODUCTS[form](lower, factor * self._radius())
        if kind == "hessian":
            return flatten(products.hessian(self.direction))
        return flatten(keyed(products.mixed(self.direction)))  # type: ignore[arg-type]

    def _is_steady(self, kind: str) -> bool:
        """Whether finite differences barely depend on their radius."""
        first, second = (self._product(kind, DIFFERENCES, factor) for factor in (0.5, 2.0))
        return _distance(first, second) <= TOLERANCE

    def _moves_unseen(self) -> bool | None:
        """Whether the loss changes with its parameters in ways that its gradient misses; None if rounding hides it.

        Finite differences include values that leave torch unnoticed, so they then differ from correct exact products.
        """
        losses = HeldLosses(self.lower)
        gradient = losses.gradient(self.lower.parameters, self.lower.reads)
        along, across = flatten(gradient), flatten(self.direction)
        if not along.any():
            return None
        sign = 1 if along @ across >= 0 else -1
        direction = along / along.norm() + sign * across / across.norm()
        step = self._radius() / direction.norm().item()
        named = unflatten(direction, self.lower.parameters)
        ahead, behind = (
            losses.mean(shifted(self.lower.parameters, named, move), self.lower.reads) for move in (step, -step)
        )
        slope, central = (along @ direction).item(), (ahead - behind) / (2 * step)
        error, size = abs(slope - central), max(abs(slope), abs(central))
        rounding = ROUNDINGS * self._arithmetic_eps * max(abs(ahead), abs(behind)) / step
        if error > TOLERANCE * size and error > rounding:
            return True
        return False if max(error, rounding) < size / 100 else None

    def _confirmed(self, kind: str, differences: Tensor, exact: Tensor) -> bool | None:
        """Whether differences taken another way agree with finite differences; None if that is inconclusive.

        They disagree if the loss changes in ways that its gradient misses, which correct exact products miss too.
        """
        if self._moves_unseen():
            return False
        gap = (differences - exact).norm().item()
        across = (differences - exact) / gap
        value, rounding = self._curvature(across) if kind == "hessian" else self._exchanged(across)
        distance = abs(value - (across @ differences).item()) / gap
        if rounding > gap / 4 or TOLERANCE < distance < 0.25:
            return None
        return distance <= TOLERANCE

    def _curvature(self, across: Tensor) -> tuple[float, float]:
        """The second difference of the loss along the direction and another direction [N], and its rounding error."""
        ways = (self.direction, unflatten(across, self.lower.parameters))
        radius = self._radius() * self._arithmetic_eps ** (-1 / 12)  # eps^(1/4) is optimal for second differences
        steps = [radius / norm(way) for way in ways]
        losses = HeldLosses(self.lower)

        def loss(*signs: int) -> float:
            point = self.lower.parameters
            for way, step, sign in zip(ways, steps, signs, strict=True):
                point = shifted(point, way, sign * step)
            return losses.mean(point, self.lower.reads)

        values = {signs: signs[0] * signs[1] * loss(*signs) for signs in product((1, -1), repeat=2)}
        area = 4 * math.prod(steps)
        return sum(values.values()) / area, ROUNDINGS * self._arithmetic_eps * max(map(abs, values.values())) / area

    def _exchanged(self, across: Tensor) -> tuple[float, float]:
        """The difference of the parameters' gradient along the direction as the levels read move along another
        direction [M], and its rounding error."""
        reads: Tensors = keyed(self.lower.reads)  # type: ignore[assignment]
        radius = getattr(self.solver, "radius", None) or default_radius(reads, self.lower.arithmetic)
        losses = HeldLosses(self.lower)

        def slope(sign: int) -> float:
            point = grouped(shifted(reads, unflatten(across, reads), sign * radius), self.lower.reads)  # type: ignore[arg-type]
            return (flatten(losses.gradient(self.lower.parameters, point)) @ flatten(self.direction)).item()

        ahead, behind = slope(1), slope(-1)
        rounding = ROUNDINGS * self._arithmetic_eps * max(abs(ahead), abs(behind)) / (2 * radius)
        return (ahead - behind) / (2 * radius), rounding

    @property
    def _arithmetic_eps(self) -> float:
        return torch.finfo(self.lower.arithmetic).eps

    def _is_noise(self, kind: str, form: str, first: Tensor, second: Tensor) -> bool:
        """Whether rounding can explain a difference between both forms because their products are below its level."""
        largest = max(first.norm().item(), second.norm().item())
        if TOLERANCE * largest < self._rounding_of_gradient(kind, DIFFERENCES in (self.used, form)):
            return True
        spread = UNLIKELY * (self._spread(kind, self.used, first) + self._spread(kind, form, second))
        smallest = min(first.norm().item(), second.norm().item())
        return max(smallest, (first - second).norm().item()) <= spread

    def _rounding_of_gradient(self, kind: str, differences: bool) -> float:
        """The norm of the error in a product from the rounding of a gradient without cancellation."""
        parameters = detached_leaves(self.lower.parameters)
        reads = {name: detached_leaves(tensors) for name, tensors in self.lower.reads.items()}
        leaves: Mapping[object, Tensor] = parameters if kind == "hessian" else keyed(reads)  # type: ignore[assignment]
        slopes = [filled(gradients(loss(parameters, reads), leaves), leaves) for loss in self.lower.losses]
        slope = max(total_norm(list(part.values())).item() for part in slopes)
        count = sum(tensor.numel() for tensor in parameters.values())
        radius = self._radius() if differences else norm(parameters) / count**0.5
        return ROUNDINGS * self._eps() * slope * norm(self.direction) / max(radius, 1e-12)

    def _spread(self, kind: str, form: str, product: Tensor) -> float:
        """The change of a product as the parameters move by a few roundings; with cancellation, it can be as large as
        the product."""
        moves = (scaled(self.lower.parameters, 1 + sign * 8 * self._eps()) for sign in (1, -1))
        return max((self._product(kind, form, moved=moved) - product).norm().item() for moved in moves)

    def _eps(self) -> float:
        return torch.finfo(next(iter(self.lower.parameters.values())).dtype).eps


def _distance(first: Tensor, second: Tensor) -> float:
    """The norm of the difference relative to the larger of the two."""
    largest = max(first.norm().item(), second.norm().item())
    return (first - second).norm().item() / largest if largest else 0.0


def _why(form: str) -> str:
    if form == DIFFERENCES:
        return "the loss is not smooth over the radius, or changes in ways that torch does not see"
    return "an operator of the loss has a wrong derivative"
