"""Unrolled solvers against central differences of real torch optimizers, run again."""

import pytest
import torch
from toy import relative_error

from multilevel import Engine, Graph, Problem
from multilevel.solvers import Sama, SolveError, Unrolled, UnrolledForward

DOUBLE = {"dtype": torch.float64}
generator = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 4, generator=generator, **DOUBLE), torch.randn(20, 1, generator=generator, **DOUBLE)
UPPER = torch.randn(1, 4, generator=generator, **DOUBLE) / 3
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "weight decay": lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, betas=(0.8, 0.9), weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1, fused=True),
    "groups": lambda p: torch.optim.Adam([{"params": p[:1], "lr": 0.03}, {"params": p[1:], "lr": 0.1, "eps": 1e-3}]),
}


class Fit(Problem):
    def loss(self, levels, batch, draws):
        hidden = levels.fit(X * levels.scale.weight.exp())
        return (hidden - Y).square().mean() + hidden.sin().mean()


class Scale(Problem):
    def loss(self, levels, batch, draws):
        return (levels.fit(X) + Y).cosh().mean()


def engine_at(upper, optimizer, solver, steps=4, schedule=False, **keywords):
    torch.manual_seed(0)
    fit, scale = torch.nn.Linear(4, 1).double(), torch.nn.Linear(4, 1, bias=False).double()
    scale.weight.data.copy_(upper)
    made = OPTIMIZERS[optimizer](list(fit.parameters()))
    if schedule:
        keywords["scheduler"] = torch.optim.lr_scheduler.ExponentialLR(made, 0.8)
    graph = Graph(
        Fit("fit", fit, optimizer=made, steps=steps, solver=solver, **keywords),
        Scale("scale", scale, optimizer=torch.optim.SGD(scale.parameters(), 0.0)),
    )
    engine = Engine(graph)
    engine.run(1)
    return engine


def by_differences(optimizer, **keywords):
    """The upper loss after training again at perturbed upper parameters."""
    slopes = []
    for unit in torch.eye(4, **DOUBLE):
        ends = []
        for sign in (1, -1):
            engine = engine_at(UPPER + sign * 1e-5 * unit, optimizer, Unrolled(), **keywords)
            fit = engine.graph.problems["fit"].module
            ends.append((fit(X) + Y).cosh().mean().item())
        slopes.append((ends[0] - ends[1]) / 2e-5)
    return torch.tensor([slopes], **DOUBLE)


@pytest.mark.parametrize("solver", [Unrolled(), Unrolled(product="forward"), UnrolledForward()], ids=str)
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_it_is_the_derivative_of_training(solver, optimizer):
    found = engine_at(UPPER, optimizer, solver).hypergradient("scale")["weight"]
    assert relative_error(found, by_differences(optimizer)) < 1e-6


@pytest.mark.parametrize("solver", [Unrolled(), UnrolledForward()], ids=str)
@pytest.mark.parametrize("keywords", [{"clip_norm": 0.3}, {"schedule": True}], ids=str)
def test_clipping_and_schedules_are_part_of_training(solver, keywords):
    found = engine_at(UPPER, "momentum", solver, **keywords).hypergradient("scale")["weight"]
    assert relative_error(found, by_differences("momentum", **keywords)) < 1e-6


def test_more_steps_see_more_of_the_training():
    exact = by_differences("sgd", steps=8)
    errors = []
    for steps in (1, 2, 8):
        found = engine_at(UPPER, "sgd", Unrolled(steps=steps), steps=8).hypergradient("scale")["weight"]
        errors.append(relative_error(found, exact))
    assert errors[0] > errors[1] > 10 * errors[2]


def test_the_window_begins_with_the_top_levels_step():
    engine = engine_at(UPPER, "sgd", Unrolled(steps=100), steps=3)
    engine.run(2)
    assert len(engine.histories["fit"].updates) == 3


def test_a_level_that_was_never_updated_is_an_error():
    engine = Engine(engine_at(UPPER, "sgd", Unrolled()).graph)
    with pytest.raises(SolveError, match="no update of the lower level"):
        engine.hypergradient("scale")


def test_sama_needs_an_optimizer_that_it_knows():
    engine = engine_at(UPPER, "sgd", Sama())
    problem = engine.graph.problems["fit"]
    problem.optimizer = torch.optim.RMSprop(problem.module.parameters())
    with pytest.raises(SolveError, match="SGD, Adam or AdamW"):
        engine.hypergradient("scale")


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov"])
def test_sama_is_the_identity_for_sgd(optimizer):
    engine = engine_at(UPPER, optimizer, Sama(product="reverse"))
    from multilevel.solvers import Identity

    expected = engine.solve_hypergradient("scale", {"fit": Identity()}).values["weight"]
    assert torch.equal(engine.hypergradient("scale")["weight"], expected)
