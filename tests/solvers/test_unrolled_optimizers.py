"""Unrolled solvers against optimizers written out in plain PyTorch, and maximizing ones with every solver."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unrolled_by_hand import (
    DOUBLE,
    SGD,
    STEPS,
    XV,
    YV,
    Level,
    Penalties,
    X,
    Y,
    adam,
    check,
    descent,
    engine_of,
    every_solver,
    fitted,
    hooked,
    hypergradient,
    ridge,
    written_out,
)

from multilevel import Engine, Graph, Problem
from multilevel.problems.errors import GraphError
from multilevel.solvers import ConjugateGradient, Dense, FiniteDifference, Identity, Sama, SolveError, Unrolled

Adam, AdamW = torch.optim.Adam, torch.optim.AdamW
FLAT = (0.05, (0.3, 0.4))  # rates and betas at which the running maximum of AMSGrad is not the last square
OPTIMIZERS = {
    "sgd": (lambda p: SGD(p, 0.1), descent),
    "tensor rate": (lambda p: SGD(p, torch.tensor(0.1, **DOUBLE)), descent),
    "adam": (lambda p: Adam(p, 0.05, weight_decay=0.1), lambda: adam(0.05, decay=0.1)),
    "adamw": (lambda p: AdamW(p, 0.05, weight_decay=0.3), lambda: adam(0.05, decay=0.3, decoupled=True)),
    "decoupled": (
        lambda p: Adam(p, 0.05, weight_decay=0.3, decoupled_weight_decay=True),
        lambda: adam(0.05, decay=0.3, decoupled=True),
    ),
    "amsgrad": (lambda p: Adam(p, *FLAT, amsgrad=True), lambda: adam(*FLAT, amsgrad=True)),
    "amsgrad adamw": (
        lambda p: AdamW(p, *FLAT, weight_decay=0.3, amsgrad=True),
        lambda: adam(*FLAT, decay=0.3, decoupled=True, amsgrad=True),
    ),
}


@every_solver
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_as_they_are_written_out(name, solver):
    make, rule = OPTIMIZERS[name]
    check(hypergradient(lambda module: make(module.parameters()), solver), written_out(rule()))


def test_amsgrad_differs_from_adam_here():
    assert (written_out(adam(*FLAT, amsgrad=True)) / written_out(adam(*FLAT)) - 1).abs().max() > 1e-2


@every_solver
@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1, **DOUBLE)], ids=["number", "tensor"])
def test_a_scheduler_that_changes_the_rate(rate, solver):
    def update(parameters, gradients, t, log):
        return descent(0.1 * 0.5**t)(parameters, gradients, t, log)

    rate = rate.clone() if isinstance(rate, torch.Tensor) else rate
    halve = {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}
    check(hypergradient(lambda module: SGD(module.parameters(), rate), solver, **halve), written_out(update))


@every_solver
def test_groups_keep_their_settings(solver):
    def update(parameters, gradients, t, log):
        weight, bias = parameters
        return [weight - 0.1 * (gradients[0] + 0.2 * weight), bias - 0.03 * gradients[1]]

    def make(module):
        return SGD([{"params": [module.weight], "weight_decay": 0.2}, {"params": [module.bias], "lr": 0.03}], 0.1)

    check(hypergradient(make, solver), written_out(update))


@every_solver
@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_to_maximize_is_to_minimize_minus_the_loss(make, clip_norm, solver):
    def half(module):
        module.weight.grad[:, :2] *= 0.5

    def found(sign):
        optimizer = hooked(
            half, make=lambda module: make(module.parameters(), 0.05, maximize=sign < 0, weight_decay=0.1)
        )
        return hypergradient(optimizer, solver, sign=sign, clip_norm=clip_norm)

    check(found(-1), found(1))


@pytest.mark.parametrize(
    "solver", [Dense(), Identity(), Identity(product="forward"), FiniteDifference(), Sama()], ids=str
)
@pytest.mark.parametrize("make", [SGD, Adam])
def test_other_solvers_take_the_negated_loss_too(make, solver):
    def optimizer(maximize):
        return lambda module: make(module.parameters(), 0.05, maximize=maximize)

    expected = hypergradient(optimizer(False), solver)
    check(hypergradient(optimizer(True), solver, sign=-1), expected, 1e-5 if "product" in str(solver) else 1e-4)


class Predicting(Problem):
    def __init__(self, *arguments, sign, **keywords):
        super().__init__(*arguments, **keywords)
        self.sign_of_loss = sign

    def outputs(self, levels, batch, draws):
        return levels.fit(X)

    def criterion(self, outputs, levels, batch, draws):
        return self.sign_of_loss * ((outputs - Y) * levels.up.log[:1].exp()).square().mean()


def test_gauss_newton_curvature_is_that_of_the_negated_loss():
    found = []
    for sign in (1, -1):
        fit, up = fitted(), Penalties()
        optimizer = SGD(fit.parameters(), 0.1, maximize=sign < 0)
        solver = ConjugateGradient(curvature="gauss_newton", damping=0.1)
        lower = Predicting("fit", fit, sign=sign, optimizer=optimizer, solver=solver)
        upper = Level("up", up, function=lambda levels, batch: (levels.fit(XV) - YV).square().mean())
        found.append(Engine(Graph(lower, upper)).solve_hypergradient("up"))
    assert found[0].values["log"][0].abs() > 1e-3
    torch.testing.assert_close(found[1].values["log"], found[0].values["log"], rtol=1e-9, atol=0)
    assert not found[1].reports["fit"].failed


def test_levels_that_read_each_other_are_solved_with_the_negated_loss():
    found = []
    for sign in (1, -1):
        inner, outer, top = fitted(), fitted(), Penalties()

        def loss(levels, batch, own, other, sign=sign):
            weight = getattr(levels, own).weight
            return sign * (
                (weight - getattr(levels, other).weight / 3 - levels.up.log[0]).square().sum() + weight.cosh().sum()
            )

        def level(name, module, other, sign=sign, loss=loss):
            return Level(
                name,
                module,
                function=lambda levels, batch: loss(levels, batch, name, other),
                optimizer=SGD([module.weight], 0.1, maximize=sign < 0),
                solver=ConjugateGradient(iterations=20, tolerance=1e-12),
            )

        upper = Level("up", top, function=lambda levels, batch: levels.outer.weight.square().sum())
        found.append(Engine(Graph(level("inner", inner, "outer"), level("outer", outer, "inner"), upper)))
    values = [engine.solve_hypergradient("up") for engine in found]
    assert values[0].values["log"][0].abs() > 1e-3
    torch.testing.assert_close(values[1].values["log"], values[0].values["log"], rtol=1e-9, atol=1e-12)
    assert not any(report.failed for report in values[1].reports.values())


def test_groups_that_maximize_and_minimize_are_refused():
    def make(module):
        return SGD([{"params": [module.weight], "maximize": True}, {"params": [module.bias]}], 0.1)

    with pytest.raises(GraphError, match="level 'fit': its optimizer maximizes in some parameter groups"):
        engine_of(make, Unrolled())


@every_solver
@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_parameters_that_an_update_does_not_move_stand_still(name, solver):
    """The bias has no gradient in every other update: neither weight decay nor momentum moves it then."""
    makes = {
        "adamw": lambda p: AdamW(p, 0.05, weight_decay=0.3),
        "momentum": lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.3),
    }

    def loss(weight, bias, log, t):
        return ridge(weight, bias if t % 2 == 0 else torch.zeros_like(bias), log)

    def through(levels, batch):
        return loss(levels.fit.weight, levels.fit.bias, levels.up.log, batch.item())

    buffers = {}

    def momentum(parameters, gradients, t, log):
        made = []
        for place, (parameter, slope) in enumerate(zip(parameters, gradients, strict=True)):
            if place == 1 and t % 2:
                made.append(parameter)
                continue
            slope = slope + 0.3 * parameter
            buffers[place] = 0.9 * buffers[place] + slope if place in buffers else slope
            made.append(parameter - 0.1 * buffers[place])
        return made

    own = [adam(0.05, decay=0.3, decoupled=True), adam(0.05, decay=0.3, decoupled=True)]

    def adamw(parameters, gradients, t, log):
        weight = own[0](parameters[:1], gradients[:1], t, log)
        return [*weight, *(parameters[1:] if t % 2 else own[1](parameters[1:], gradients[1:], t // 2, log))]

    data = [torch.tensor(t) for t in range(STEPS)]
    found = hypergradient(lambda module: makes[name](module.parameters()), solver, loss=through, data=data)
    check(found, written_out({"adamw": adamw, "momentum": momentum}[name], loss))


class Scaled(nn.Linear):
    """Its scale, a buffer that its output depends on, moves with every update."""

    def __init__(self):
        torch.manual_seed(1)
        super().__init__(4, 1, **DOUBLE)
        self.register_buffer("scale", torch.ones((), **DOUBLE))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x, move=False):
        if move:
            self.scale.mul_(1.2)
            self.count.add_(1)
        return super().forward(x) * self.scale


@every_solver
@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_part_is_evaluated_with_the_buffers_that_it_started_from(accumulate, solver):
    def through(levels, batch):
        fit = levels.fit
        return (
            (fit(X, True) - Y).square().mean()
            + levels.up.log[0].exp() * fit.weight.square().sum()
            + (levels.up.log[1] * (fit.bias - 0.1).square().sum())
        )

    def loss(weight, bias, log, t):
        values = [
            ridge(weight * 1.2 ** (accumulate * t + part + 1), bias * 1.2 ** (accumulate * t + part + 1), log * 0 - 99)
            for part in range(accumulate)
        ]
        penalty = log[0].exp() * weight.square().sum() + log[1] * (bias - 0.1).square().sum()
        return (
            sum(values) / accumulate
            + penalty
            + 99
            * sum((bias * 1.2 ** (accumulate * t + part + 1) - 0.1).square().sum() for part in range(accumulate))
            / accumulate
        )

    found = hypergradient(
        hooked(make=lambda module: SGD(module.parameters(), 0.02)),
        solver,
        module=Scaled(),
        loss=through,
        accumulate=accumulate,
        validation=lambda levels, batch: F.mse_loss(levels.fit(XV) / levels.fit.scale, YV),
    )
    check(found, written_out(descent(0.02), loss), 1e-8)


@pytest.mark.parametrize("make", [torch.optim.RMSprop, type("Own", (SGD,), {})])
def test_an_optimizer_that_is_not_known_is_named(make):
    engine = engine_of(lambda module: make(module.parameters(), 0.1), Dense())
    with pytest.raises(SolveError, match=f"level 'fit'.*SGD, Adam or AdamW.*{make.__name__}"):
        engine.solve_hypergradient("up", {"fit": Unrolled()})
