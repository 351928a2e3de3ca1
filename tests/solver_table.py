"""The one table that drives all tests of solvers: what each computes in dense algebra, and how closely."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multilevel.solvers import SOLVERS, Solver


@dataclass(frozen=True)
class Row:
    """A solver with options.

    Attributes:
        name: in ``SOLVERS``.
        options: its settings.
        inverse: (dense Hessian [N, N], cotangent [N]) to what the solver puts for the inverse times the cotangent.
        tolerance: relative error of a float64 hypergradient against dense algebra.
    """

    name: str
    options: dict[str, Any]
    inverse: Callable[[Tensor, Tensor], Tensor]
    tolerance: float

    def solver(self, **more: Any) -> Solver:
        return SOLVERS[self.name](**{**self.options, **more})

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def identity(hessian: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent


def exact(hessian: Tensor, cotangent: Tensor) -> Tensor:
    return torch.linalg.solve(hessian, cotangent)


def series(terms: int, step: float) -> Callable[[Tensor, Tensor], Tensor]:
    """step * sum over k < terms of (I - step H)^k, from the eigenvalues."""

    def apply(hessian: Tensor, cotangent: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(hessian)
        factors = (1 - (1 - step * values) ** terms) / values
        return vectors @ (factors * (vectors.T @ cotangent))

    return apply


ROWS = [
    Row("finite_difference", {}, identity, 1e-6),
    Row("finite_difference", {"product": "finite_difference", "measure_residual": True}, identity, 1e-6),
    Row("neumann", {"terms": 6, "step_size": 0.1, "tolerance": 0.0}, series(6, 0.1), 1e-10),
    Row("neumann", {"terms": 500, "tolerance": 1e-12}, exact, 1e-8),
    Row("neumann", {"terms": 6, "step_size": 0.1, "product": "finite_difference"}, series(6, 0.1), 1e-6),
    Row("conjugate_gradient", {"iterations": 40, "tolerance": 1e-13}, exact, 1e-8),
    Row("conjugate_gradient", {"iterations": 40, "tolerance": 1e-7, "product": "finite_difference"}, exact, 1e-5),
]
