"""Sharing calls between evaluations changes how often a module computes, and nothing else."""

import pytest
import torch
from torch import nn

from multilevel import Engine, Graph, Problem
from multilevel.problems.shared_calls import SharedCalls
from multilevel.solvers import ConjugateGradient, FiniteDifference

generator = torch.Generator().manual_seed(0)
X = torch.randn(12, 4, generator=generator, dtype=torch.float64)
Y = torch.randn(12, 1, generator=generator, dtype=torch.float64)


class Encoder(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.extra = {
            "dropout": nn.Dropout(0.4),
            "dropout twice": nn.Dropout(0.4),
            "batch norm": nn.BatchNorm1d(5),
        }.get(kind, nn.Identity())
        self.calls = 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        return self.extra(self.linear(x)).tanh() * scale


class Head(Problem):
    kind = "plain"

    def loss(self, levels, batch, draws):
        x, y = batch
        if self.kind == "keywords":
            features = levels.encoder(x, scale=2.0) + levels.encoder(x, scale=3.0)
        elif self.kind == "dropout twice":
            features = levels.encoder(x) * levels.encoder(x)
        elif self.kind == "in place":
            features = levels.encoder(x).mul_(2)
        elif self.kind == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features = levels.encoder(x).double()
            features = features + levels.encoder(x)
        elif self.kind == "own output":
            features = levels.encoder(levels.head(levels.encoder(x)).expand(-1, 4))
        else:
            features = levels.encoder(x)
        noise = torch.rand(len(x), 1, dtype=x.dtype)
        return (levels.head(features + 0.1 * noise) - y).square().mean()


class Decay(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        return (levels.head(levels.encoder(x)) - y).square().mean() + levels.encoder.linear.weight.square().sum()


KINDS = ("plain", "dropout", "dropout twice", "batch norm", "keywords", "in place", "own output", "autocast")


def build(kind, solver):
    torch.manual_seed(0)
    encoder, head = Encoder(kind).double(), nn.Linear(5, 1).double()
    level = Head("head", head, data=[(X, Y)], solver=solver)
    level.kind = kind
    return Engine(Graph(level, Decay("encoder", encoder, data=[(X, Y)]))), encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", [FiniteDifference(), ConjugateGradient(product="finite_difference")], ids=str)
def test_results_are_those_of_evaluations_on_their_own(kind, solver, monkeypatch):
    shared = build(kind, solver)[0].hypergradient("encoder")
    monkeypatch.setattr(SharedCalls, "call", lambda self, target, parameters, arguments, buffers, compute: compute())
    alone = build(kind, solver)[0].hypergradient("encoder")
    for key, value in alone.items():
        torch.testing.assert_close(shared[key], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "calls"),
    # the direct gradient, and one for both points of the difference; or one for each point
    [
        ("plain", 2),
        ("dropout", 2),
        ("dropout twice", 3),
        ("batch norm", 3),
        ("in place", 3),
        ("keywords", 3),
        ("autocast", 3),
    ],
)
def test_a_call_is_made_once_where_it_is_the_same_call(kind, calls):
    engine, encoder = build(kind, FiniteDifference())
    encoder.calls = 0
    engine.hypergradient("encoder")
    assert encoder.calls == calls


def test_nothing_is_kept_after_the_solve():
    shared = SharedCalls("head")
    with shared.kept():
        value = shared.call(("module", "call"), [], (), [], lambda: torch.ones(1))
        assert shared.call(("module", "call"), [], (), [], lambda: torch.zeros(1)) is value
    with shared.kept():
        assert shared.call(("module", "call"), [], (), [], lambda: torch.zeros(1)) == 0


@pytest.mark.parametrize("kind", ["plain", "dropout", "batch norm"])
def test_calls_of_an_update_serve_the_product_after_it_and_change_nothing(kind):
    found, calls = [], []
    for reuse in (False, True):
        engine, encoder = build(kind, FiniteDifference())
        engine.reuse = reuse
        for problem in engine.graph.problems.values():
            problem.optimizer = torch.optim.SGD(problem.module.parameters(), 0.1)
        encoder.calls = 0
        engine.run(3)
        calls.append(encoder.calls)
        found.append(torch.cat([one.detach().reshape(-1) for one in encoder.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
    assert calls[1] == calls[0] - 3 if kind != "batch norm" else calls[1] <= calls[0]
