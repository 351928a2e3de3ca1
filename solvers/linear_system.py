"""Solvers for a lower level's linear system."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multilevel.solvers.base import Response, Solver, SolveReport
from multilevel.solvers.errors import SolveError
from multilevel.solvers.lower_level import LowerLevel
from multilevel.solvers.products import PRODUCTS, ProductName, Products
from multilevel.solvers.ranges import NonNegative, PositiveNumber
from multilevel.solvers.vectors import Tensors, flatten, magnitude, unflatten


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
        product: the damped Hessian (or its substitute) times a vector, [N] -> [N].
        right_hand_side: the cotangent a [N], finite and not 0.
        lower: the level.
        products: the level's products, for other needs of the solve.
        start: the last solution [N], or None.
    """

    product: Callable[[Tensor], Tensor]
    right_hand_side: Tensor
    lower: LowerLevel
    products: Products
    start: Tensor | None = None

    def residual(self, x: Tensor) -> float:
        """``|H x - a| / |a|``, damping included, at the cost of one product."""
        return ((self.product(x) - self.right_hand_side).norm() / self.right_hand_side.norm()).item()


@dataclass
class ImplicitSolver(Solver):
    """A solver that solves ``(H + damping I) x = a`` and forms one mixed product with x.

    Args:
        product: how products are formed: reverse (over reverse; exact), forward (forward combined with reverse; exact,
            and keeps no graph of the gradient), finite_difference, or auto (the first of forward, reverse and
            finite_difference that the loss's operators allow).
        damping: added to the Hessian's diagonal, >= 0.
        radius: norm of a finite difference's perturbation; None computes it (see FiniteDifferenceProducts).
        strict: raise SolveError if a solve fails, instead of using its last good iterate.

    Examples:
        A solver that returns half of the cotangent, on the level of ``LowerLevel``'s example:

        >>> class Half(ImplicitSolver):
        ...     def solve(self, system):
        ...         x = system.right_hand_side / 2
        ...         return Solution(x, system.residual(x))
        >>> Half().respond(lower, cotangent).contributions["upper"]["r"]
        tensor([0.5000, 0.5000, 0.5000])
    """

    product: ProductName = field(default="reverse", kw_only=True)
    damping: NonNegative = field(default=0.0, kw_only=True)
    radius: PositiveNumber | None = field(default=None, kw_only=True)
    strict: bool = field(default=False, kw_only=True)

    @property
    def nests(self) -> bool:
        return True

    @property
    def keeps_solution(self) -> bool:
        """Whether the level's next solve uses this solution."""
        return False

    @abstractmethod
    def solve(self, system: LinearSystem) -> Solution:
        """Solve for x [N]."""

    def curved(self, products: Products) -> Callable[[Tensors], Tensors]:
        """The product that takes the role of the Hessian's."""
        return products.hessian

    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        products = PRODUCTS[self.product](lower, self.radius)
        solution = self.checked(self.system(products, self.curved(products), flatten(cotangent)))
        mixed = products.mixed(unflatten(solution.x, lower.parameters))
        contributions = {level: {name: -value for name, value in tensors.items()} for level, tensors in mixed.items()}
        start = unflatten(solution.x, lower.parameters) if self.keeps_solution else None
        return Response(contributions, report_of(solution, products), start)

    def system(self, products: Products, curved: Callable[[Tensors], Tensors], right_hand_side: Tensor) -> LinearSystem:
        """The damped system for a right-hand side; ``curved`` is the undamped product."""
        lower = products.lower

        def product(vector: Tensor) -> Tensor:
            result = flatten(curved(unflatten(vector, lower.parameters)))
            return result + self.damping * vector if self.damping else result

        def product_in_float16(vector: Tensor) -> Tensor:
            scale = magnitude({"": vector}) or 1.0  # a direction that became small in the solve would underflow
            return product(vector / scale) * scale

        narrow = any(tensor.dtype == torch.float16 for tensor in lower.parameters.values())
        multiply = product_in_float16 if narrow else product
        return LinearSystem(multiply, right_hand_side, lower, products, start_of(lower))

    def checked(self, system: LinearSystem) -> Solution:
        """Run ``solve``, and raise an error if it fails and the solver is strict."""
        solution = self.solve(system)
        if solution.failed and self.strict:
            raise SolveError(f"the solve failed (strict=true): {solution.cause}")
        return solution


def start_of(lower: LowerLevel) -> Tensor | None:
    """The last solution [N]; None if there is none, or if parameters were frozen or unfrozen since."""
    shapes = {name: tensor.shape for name, tensor in lower.parameters.items()}
    if lower.start is None or {name: tensor.shape for name, tensor in lower.start.items()} != shapes:
        return None
    return flatten({name: lower.start[name] for name in lower.parameters})


def report_of(solution: Solution, products: Products) -> SolveReport:
    quality = (solution.residual, solution.converged, solution.cause, solution.failed)
    return SolveReport(products.evaluations, products.products, *quality, products.chosen)
