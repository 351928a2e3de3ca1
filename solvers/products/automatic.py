"""Chooses the products that a loss allows: exact products wherever torch has the derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multilevel.solvers.errors import ProductError
from multilevel.solvers.lower_level import LowerLevel, Prediction, ProductChoice
from multilevel.solvers.products.base import Products, Reads
from multilevel.solvers.products.finite_difference import FiniteDifferenceProducts
from multilevel.solvers.products.forward import ForwardProducts
from multilevel.solvers.products.reverse import ReverseProducts
from multilevel.solvers.vectors import Tensors

#: In order of preference.
FORMS: dict[str, type[Products]] = {
    "forward": ForwardProducts,
    "reverse": ReverseProducts,
    "finite_difference": FiniteDifferenceProducts,
}


class AutomaticProducts(Products):
    """Forward products if every operator of the loss supports them, else reverse products, else finite differences.

    A given radius selects finite differences.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4):

        >>> products = AutomaticProducts(lower)
        >>> products.hessian({"p": torch.ones(3)}), products.form
        ({'p': tensor([1., 2., 4.])}, 'forward')
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
        """The current form: forward, reverse or finite_difference."""
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
                if not _advance(self._choice, error):
                    raise
                self._taken = None
            finally:
                self.evaluations += taken.evaluations - before[0]
                self.products += taken.products - before[1]


def _advance(choice: ProductChoice, error: ProductError) -> bool:
    """Switch to the next form after this one failed with ``error``; False if no form is left."""
    names = list(FORMS)
    position = names.index(choice.name) + 1
    if position == len(names):
        return False
    reason, _, _ = str(error).partition(f": {FORMS[choice.name].remedy}")
    failure = f"{choice.name} fails: {reason}"
    choice.reason = failure if position == 1 else f"{choice.reason}; {failure}"
    choice.name = names[position]
    return True
