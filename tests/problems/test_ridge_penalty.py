"""Ridge regression with a learned penalty: the hypergradient has a closed form."""

import itertools

import pytest
import torch
from solver_table import ROWS
from toy import relative_error, toy_graph

from multilevel import Engine
from multilevel.solvers import ConjugateGradient, Neumann

generator = torch.Generator().manual_seed(0)
X, Y, W, LOG_PENALTY = (
    torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(30, 6), (30,), (6,), (6,)]
)
X = X / 30**0.5
FUNCTIONS = {
    "fit": lambda v: (
        ((X[:20] @ v["fit"] - Y[:20]).square() + 0).sum() / 2 + (v["penalty"].exp() * v["fit"] ** 2).sum() / 2
    ),
    "penalty": lambda v: (X[20:] @ v["fit"] - Y[20:]).square().sum() / 2,
}
HESSIAN = X[:20].T @ X[:20] + LOG_PENALTY.exp().diag()
COTANGENT = X[20:].T @ (X[20:] @ W - Y[20:])


def hypergradient(solver, w=W):
    graph = toy_graph(FUNCTIONS, {"fit": w, "penalty": LOG_PENALTY}, {"fit": solver})
    return Engine(graph).hypergradient("penalty")["value"]


def closed_form(x, w=W):
    return -LOG_PENALTY.exp() * w * x


@pytest.mark.parametrize("row", [row for row in ROWS if row.inverse], ids=str)
def test_every_solver_gives_its_closed_form(row):
    expected = closed_form(row.inverse(HESSIAN, COTANGENT))
    assert relative_error(hypergradient(row.solver()), expected) < row.tolerance


def test_conjugate_gradient_is_the_derivative_of_the_fitted_problem():
    fitted = torch.linalg.solve(HESSIAN, X[:20].T @ Y[:20])
    log_penalty = LOG_PENALTY.clone().requires_grad_()
    solution = torch.linalg.solve(X[:20].T @ X[:20] + log_penalty.exp().diag(), X[:20].T @ Y[:20])
    expected = torch.autograd.grad((X[20:] @ solution - Y[20:]).square().sum() / 2, log_penalty)[0]
    found = hypergradient(ConjugateGradient(iterations=20, tolerance=1e-14), fitted)
    assert relative_error(found, expected) < 1e-8


def test_neumann_error_falls_geometrically_with_the_terms():
    exact = closed_form(torch.linalg.solve(HESSIAN, COTANGENT))
    eigenvalues = torch.linalg.eigvalsh(HESSIAN)
    step = 1 / eigenvalues[-1].item()
    counts = (20, 40, 60, 80)
    errors = [relative_error(hypergradient(Neumann(terms=k, step_size=step, tolerance=0.0)), exact) for k in counts]
    factor = (1 - step * eigenvalues[0].item()) ** 20  # of the slowest component, over 20 terms
    for before, after in itertools.pairwise(errors):
        assert after / before == pytest.approx(factor, rel=0.02)
