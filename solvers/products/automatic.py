"""The products that a loss allows: exact ones wherever torch has the derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from multilevel.solvers.errors import ProductError
from multilevel.solvers.products.base import Products, Reads
from multilevel.solvers.products.finite_difference import FiniteDifferenceProducts
from multilevel.solvers.products.forward import ForwardProducts
from multilevel.solvers.products.reverse import ReverseProducts
from multilevel.solvers.vectors import Tensors

if TYPE_CHECKING:
    from multilevel.solvers.base import LowerLevel, Prediction

#: In the order in which they are tried.
FORMS: dict[str, type[Products]] = {
    "forward": ForwardProducts,
    "reverse": ReverseProducts,
    "finite_difference": FiniteDifferenceProducts,
}


@dataclass
class ProductChoice:
    """What solves have learned about a level's loss; whoever keeps it saves later solves the search.

    Attributes:
        name: forward, reverse or finite_difference.
        reason: why not the ones before it.
        detaches: whether the loss is known to detach something, which finite differences hold.
    """

    name: str = "forward"
    reason: str = "every operator of the loss has a forward derivative"
    detaches: bool = False

    def advance(self, error: ProductError) -> bool:
        """Take the next form, as ``error`` says that this one cannot be had; False where there is none left."""
        names = list(FORMS)
        place = names.index(self.name) + 1
        if place == len(names):
            return False
        reason, _, _ = str(error).partition(f": {FORMS[self.name].remedy}")
        self.reason = f"{self.name} fails: {reason}" if place == 1 else f"{self.reason}; {self.name} fails: {reason}"
        self.name = names[place]
        return True

    def __str__(self) -> str:
        return f"product={self.name}: {self.reason}"


class AutomaticProducts(Products):
    """Forward products where every operator of the loss has them, else reverse ones, else finite differences.

    A radius asks for finite differences.
    """

    def __init__(self, lower: LowerLevel, radius: float | None = None) -> None:
        super().__init__(lower, radius)
        self._choice = lower.choice if radius is None else ProductChoice("finite_difference", "a radius is given")
        self._taken: Products | None = None

    @property
    def chosen(self) -> str:
        return str(self._choice)

    @property
    def form(self) -> str:
        """Which products these are now: forward, reverse or finite_difference."""
        return self._choice.name

    def hessian(self, direction: Tensors, read_direction: Mapping[str, Tensors] | None = None) -> dict[str, Tensor]:
        return self._formed("hessian", direction, read_direction)

    def mixed(self, direction: Tensors) -> Reads:
        return self._formed("mixed", direction)

    def gradient(self) -> dict[str, Tensor]:
        return self._formed("gradient")

    def gauss_newton(self, direction: Tensors) -> dict[str, Tensor]:
        return self._formed("gauss_newton", direction)

    def output_tangents(self, prediction: Prediction, direction: Tensors) -> list[Tensor]:
        return self._formed("output_tangents", prediction, direction)

    def _formed(self, product: str, *arguments: Any) -> Any:
        while True:
            if self._taken is None:
                self._taken = FORMS[self._choice.name](self.lower, self.radius)
            taken, before = self._taken, (self._taken.evaluations, self._taken.products)
            try:
                return getattr(taken, product)(*arguments)
            except ProductError as error:
                if not self._choice.advance(error):
                    raise
                self._taken = None
            finally:
                self.evaluations += taken.evaluations - before[0]
                self.products += taken.products - before[1]
