"""Hessian-vector, Gauss-Newton and mixed products of a lower level's loss, one way of forming them a file."""

from multilevel.solvers.products.automatic import FORMS, AutomaticProducts, ProductChoice
from multilevel.solvers.products.base import Products, Reads
from multilevel.solvers.products.finite_difference import FiniteDifferenceProducts, default_radius
from multilevel.solvers.products.forward import ForwardProducts
from multilevel.solvers.products.reverse import ReverseProducts

PRODUCTS: dict[str, type[Products]] = {"auto": AutomaticProducts, **FORMS}

__all__ = [
    "PRODUCTS",
    "AutomaticProducts",
    "FiniteDifferenceProducts",
    "ForwardProducts",
    "ProductChoice",
    "Products",
    "Reads",
    "ReverseProducts",
    "default_radius",
]
