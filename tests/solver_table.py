"""The one table that drives all tests of solvers: what each computes in dense algebra, and how closely."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from toy import adam

from multilevel.solvers import SOLVERS, ImplicitSolver, Solver


@dataclass(frozen=True)
class Row:
    """A solver with options.

    Attributes:
        name: in ``SOLVERS``.
        options: its settings.
        contribution: (function of {level: vector}, level, values, cotangent, past) to {level: contribution}: the
            solver's own definition in dense float64 algebra; ``damping`` may follow.
        tolerance: relative error of a float64 hypergradient against that.
    """

    name: str
    options: dict[str, Any]
    contribution: Callable[..., dict[str, Tensor]]
    tolerance: float

    def solver(self, **more: Any) -> Solver:
        return SOLVERS[self.name](**{**self.options, **more})

    @property
    def implicit(self) -> bool:
        return issubclass(SOLVERS[self.name], ImplicitSolver)

    @property
    def inverse(self) -> Callable[..., Tensor] | None:
        """What it puts for the inverse Hessian times the cotangent; None where that depends on more."""
        return getattr(self.contribution, "inverse", None)

    @property
    def trains(self) -> bool:
        """Whether it needs a lower level that has been trained."""
        return self.unrolled or self.name == "sama"

    @property
    def unrolled(self) -> bool:
        return self.name in ("unrolled", "unrolled_forward")

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def implicit(inverse: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., dict[str, Tensor]]:
    """Minus the mixed derivatives along ``inverse(dense Hessian [N, N], cotangent [N], damping)``."""

    def contribution(function, name, values, cotangent, past=None, damping=0.0):
        x = inverse(dense_hessian(function, name, values), cotangent, damping)
        return mixed(function, name, values, x)

    contribution.inverse = inverse
    return contribution


def dense_hessian(function, name, values):
    return torch.func.hessian(lambda one: function({**values, name: one}))(values[name])


def mixed(function, name, values, x):
    point = {level: value.clone().requires_grad_() for level, value in values.items()}
    slope = torch.autograd.grad(function(point), point[name], create_graph=True)[0]
    if not slope.requires_grad:
        return {level: torch.zeros_like(value) for level, value in point.items()}
    found = torch.autograd.grad(slope @ x.detach(), list(point.values()), materialize_grads=True)
    return {level: -one for level, one in zip(point, found, strict=True)}


def identity(hessian: Tensor, cotangent: Tensor, damping: float = 0.0) -> Tensor:
    return cotangent


def exact(hessian: Tensor, cotangent: Tensor, damping: float = 0.0) -> Tensor:
    return torch.linalg.solve(hessian + damping * torch.eye(len(hessian)).to(hessian), cotangent)


def series(terms: int, step: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    """step * sum over k < terms of (I - step H)^k, from the eigenvalues."""

    def apply(hessian: Tensor, cotangent: Tensor, damping: float = 0.0) -> Tensor:
        values, vectors = torch.linalg.eigh(hessian + damping * torch.eye(len(hessian)).to(hessian))
        factors = (1 - (1 - step * values) ** terms) / values
        return vectors @ (factors * (vectors.T @ cotangent))

    return apply


def sketched(rank: int) -> Callable[[Tensor, Tensor, float], Tensor]:
    """``H S (S' H S)^-1 S' H`` with the seeded sketch S in place of H; the part outside counts as damping alone."""

    def apply(hessian: Tensor, cotangent: Tensor, damping: float = 0.0) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(len(cotangent), min(rank, len(cotangent)), generator=generator, dtype=torch.float64)
        sketch = torch.linalg.qr(drawn)[0]
        image = hessian @ sketch
        approximation = image @ torch.linalg.solve(sketch.T @ image, image.T)
        if damping:
            return exact(approximation, cotangent, damping)
        return torch.linalg.pinv(approximation, rtol=1e-6, hermitian=True) @ cotangent

    return apply


def unrolled(function, name, values, cotangent, past, count=None):
    """Backpropagation through Adam written out, from the oldest recorded update on."""
    leaves = {level: torch.zeros_like(value, requires_grad=True) for level, value in values.items() if level != name}
    parameter, _, state, number = past.steps[0]
    for offset, (_, reads, _, _) in enumerate(past.steps):
        parameter = parameter.detach().requires_grad_() if offset == 0 else parameter
        point = {level: value + leaves[level] for level, value in {**values, **reads}.items() if level != name}
        slope = torch.autograd.grad(function({**point, name: parameter}), parameter, create_graph=True)[0]
        parameter, state = adam(parameter, slope, state, number + offset, past.rate)
    torch.testing.assert_close(parameter.detach(), values[name], rtol=1e-8, atol=1e-10)  # the path is the real one
    if not parameter.requires_grad:
        return {level: torch.zeros_like(value) for level, value in values.items()}
    found = torch.autograd.grad(parameter @ cotangent, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def adaptive(function, name, values, cotangent, past, damping=0.0):
    """The identity, scaled by the derivative of Adam's next step with respect to each component of the gradient."""
    point = values[name].clone().requires_grad_()
    slope = torch.autograd.grad(function({**values, name: point}), point)[0].requires_grad_()
    after, _ = adam(values[name], slope, past.state, past.count, past.rate)
    scales = torch.autograd.grad(after.sum(), slope)[0] / -past.rate
    return mixed(function, name, values, scales * cotangent)


ROWS = [
    Row("identity", {}, implicit(identity), 1e-10),
    Row("identity", {"product": "forward", "measure_residual": True}, implicit(identity), 1e-10),
    Row("finite_difference", {}, implicit(identity), 1e-6),
    Row("finite_difference", {"measure_residual": True}, implicit(identity), 1e-6),
    Row("neumann", {"terms": 6, "step_size": 0.1, "tolerance": 0.0}, implicit(series(6, 0.1)), 1e-10),
    Row("neumann", {"terms": 500, "tolerance": 1e-12}, implicit(exact), 1e-8),
    Row("neumann", {"terms": 6, "step_size": 0.1, "product": "finite_difference"}, implicit(series(6, 0.1)), 1e-6),
    Row("conjugate_gradient", {"iterations": 40, "tolerance": 1e-13}, implicit(exact), 1e-8),
    Row("conjugate_gradient", {"iterations": 40, "tolerance": 1e-13, "product": "forward"}, implicit(exact), 1e-8),
    Row(
        "conjugate_gradient",
        {"iterations": 40, "tolerance": 1e-7, "product": "finite_difference"},
        implicit(exact),
        1e-5,
    ),
    Row("minres", {"iterations": 40, "tolerance": 1e-13}, implicit(exact), 1e-8),
    Row("dense", {}, implicit(exact), 1e-10),
    Row("nystrom", {"rank": 100}, implicit(exact), 1e-6),
    Row("nystrom", {"rank": 2, "product": "forward"}, implicit(sketched(2)), 1e-4),
    Row("first_order", {"steps": 6, "step_size": 0.1}, implicit(series(6, 0.1)), 1e-6),
    Row("auto", {}, implicit(exact), 1e-10),
    Row("sama", {"product": "reverse"}, adaptive, 1e-8),
    Row("sama", {}, adaptive, 1e-5),
    Row("unrolled", {"steps": 2}, unrolled, 1e-8),
    Row("unrolled", {"steps": 9, "product": "forward"}, unrolled, 1e-8),
    Row("unrolled", {"steps": 3, "product": "finite_difference"}, unrolled, 1e-5),
    Row("unrolled_forward", {"steps": 2}, unrolled, 1e-8),
    Row("unrolled_forward", {"steps": 3, "product": "forward"}, unrolled, 1e-8),
    Row("unrolled_forward", {"steps": 3, "product": "finite_difference"}, unrolled, 1e-4),
]
