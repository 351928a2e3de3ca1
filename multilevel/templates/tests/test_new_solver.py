"""The solver new_solver agrees with dense linear algebra, and reports the solves that it cannot do."""

import pytest
import torch

from multilevel import Engine, Graph, Problem
from multilevel.solvers import SettingError
from multilevel.solvers.new_solver import NewSolver


class Vector(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(value)


class Lower(Problem):
    """``x' H x / 2 - x' B y`` in x, y being the upper level's: its minimum is at x = H^-1 B y."""

    def __init__(self, x, hessian, mixed, solver):
        super().__init__("lower", Vector(x), solver=solver)
        self.hessian, self.mixed = hessian, mixed

    def loss(self, levels, batch, draws):
        x, y = levels.lower.value, levels.upper.value
        return x @ self.hessian @ x / 2 - x @ self.mixed @ y


class Upper(Problem):
    """``|x|^2 / 2``."""

    def loss(self, levels, batch, draws):
        return levels.lower.value.square().sum() / 2


def solved(eigenvalues, solver):
    """The hypergradient, the report of its solve, and the result of dense linear algebra."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    hessian = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    x, y, mixed = (torch.randn(size, dtype=torch.float64) for size in (5, 3, (5, 3)))
    graph = Graph(Lower(x, hessian, mixed, solver), Upper("upper", Vector(y)))
    hypergradient = Engine(graph).solve_hypergradient("upper")
    damped = hessian + solver.damping * torch.eye(5, dtype=torch.float64)
    return hypergradient.values["value"], hypergradient.reports["lower"], mixed.T @ torch.linalg.solve(damped, x)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_it_solves_a_positive_definite_system(damping):
    solver = NewSolver(iterations=500, tolerance=1e-12, damping=damping)
    hypergradient, report, expected = solved([0.5, 1.0, 2.0, 3.0, 4.0], solver)
    assert report.converged
    torch.testing.assert_close(hypergradient, expected, rtol=1e-9, atol=1e-9)


def test_it_says_that_it_has_not_converged_and_what_would_help():
    _, report, _ = solved([0.5, 1.0, 2.0, 3.0, 4.0], NewSolver(iterations=2))
    assert report.converged is False
    assert 0 < report.residual < 1
    assert "raise solver.iterations" in report.cause


def test_negative_curvature_is_a_failed_solve():
    _, report, _ = solved([-4.0, -3.0, -2.0, -1.0, -0.5], NewSolver())
    assert report.failed
    assert "raise solver.damping" in report.cause


def test_a_setting_out_of_range_is_named():
    with pytest.raises(SettingError, match=r"solver\.iterations"):
        NewSolver(iterations=0)
