"""Hessian-vector, Gauss-Newton and mixed products of a lower level's loss, one form per file."""

from typing import Annotated

from multilevel.solvers.products.automatic import FORMS, AutomaticProducts, ProductChoice
from multilevel.solvers.products.base import Products, Reads
from multilevel.solvers.products.finite_difference import FiniteDifferenceProducts, default_radius
from multilevel.solvers.products.forward import ForwardProducts
from multilevel.solvers.products.reverse import ReverseProducts
from multilevel.solvers.ranges import OneOf

PRODUCTS: dict[str, type[Products]] = {"auto": AutomaticProducts, **FORMS}
ProductName = Annotated[str, OneOf(*PRODUCTS)]

__all__ = [
    "PRODUCTS",
    "AutomaticProducts",
    "FiniteDifferenceProducts",
    "ForwardProducts",
    "ProductChoice",
    "ProductName",
    "Products",
    "Reads",
    "ReverseProducts",
    "default_radius",
]
