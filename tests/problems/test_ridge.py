"""Ridge regression with a learned penalty: the hypergradient has a closed form."""

import pytest
import torch
from torch import nn

from multilevel import Engine, Graph, Problem
from multilevel.solvers import ConjugateGradient, FiniteDifference


class Weights(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)


class Fit(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        w = levels.fit.values
        return (x @ w - y).square().sum() / 2 + (levels.penalty.values.exp() * w.square()).sum() / 2


class Penalty(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        return (x @ levels.fit.values - y).square().sum() / 2


@pytest.mark.parametrize("solver", [ConjugateGradient(iterations=20, tolerance=1e-14), FiniteDifference()])
def test_hypergradient_is_the_closed_form(solver):
    torch.manual_seed(0)
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    w, log_penalty = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    graph = Graph(
        Fit("fit", Weights(w.clone()), data=[(x[:20], y[:20])], solver=solver),
        Penalty("penalty", Weights(log_penalty.clone()), data=[(x[20:], y[20:])]),
    )
    cotangent = x[20:].T @ (x[20:] @ w - y[20:])
    hessian = x[:20].T @ x[:20] + log_penalty.exp().diag()
    solved = torch.linalg.solve(hessian, cotangent) if isinstance(solver, ConjugateGradient) else cotangent
    expected = -log_penalty.exp() * w * solved
    result = Engine(graph).hypergradient("penalty")["values"]
    tolerance = 1e-8 if isinstance(solver, ConjugateGradient) else 1e-6
    assert (result - expected).norm() / expected.norm() < tolerance
