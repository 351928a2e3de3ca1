"""A ridge regression with two learned penalties, trained by the engine, and by plain PyTorch loops with
create_graph=True that know nothing of this package."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multilevel import Callback, Engine, Graph, Problem
from multilevel.solvers import Unrolled, UnrolledForward

DOUBLE = {"dtype": torch.float64}
generator = torch.Generator().manual_seed(0)
X, Y, XV, YV = (torch.randn(n, k, generator=generator, **DOUBLE) for n, k in ((30, 4), (30, 1), (20, 4), (20, 1)))
START = torch.tensor([-1.0, 0.3], **DOUBLE)
STEPS = 4
SGD = torch.optim.SGD
SOLVERS = [Unrolled(steps=9), Unrolled(steps=9, product="forward"), UnrolledForward()]


class Penalties(nn.Module):
    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(START.clone())


class Level(Problem):
    def __init__(self, *arguments, function, **keywords):
        super().__init__(*arguments, **keywords)
        self.function = function

    def loss(self, levels, batch, draws):
        return self.function(levels, batch)


def ridge(weight, bias, log, move=0, sign=1):
    value = (X @ weight.T + bias - Y).square().mean() + log[0].exp() * weight.square().sum()
    return sign * (value + log[1] * (bias - 0.1).square().sum())


def fitted():
    torch.manual_seed(1)
    return nn.Linear(4, 1, **DOUBLE)


def engine_of(
    make, solver, module=None, loss=None, callbacks=(), validation=None, sign=1, recorded_steps=0, **keywords
):
    """A ridge regression with two learned penalties, after ``STEPS`` updates by the optimizer that ``make`` gives."""
    fit, up = fitted() if module is None else module, Penalties()
    optimizer = make(fit)
    scheduler = keywords.pop("scheduler", None)
    loss = loss or (lambda levels, batch: ridge(levels.fit.weight, levels.fit.bias, levels.up.log, sign=sign))
    lower = Level(
        "fit",
        fit,
        function=loss,
        optimizer=optimizer,
        steps=STEPS,
        solver=solver,
        scheduler=scheduler and scheduler(optimizer),
        **keywords,
    )
    validation = validation or (lambda levels, batch: F.mse_loss(levels.fit(XV), YV))
    upper = Level("up", up, function=validation, optimizer=SGD(up.parameters(), 0.0))
    engine = Engine(Graph(lower, upper), callbacks=callbacks)
    engine.recorded_steps = recorded_steps
    engine.run(1)
    return engine


def hypergradient(*arguments, **keywords):
    return engine_of(*arguments, **keywords).hypergradient("up")["log"]


def written_out(update, loss=ridge, validation=None):
    """The derivative through ``update(parameters, gradients, t, log)`` repeated, by one backward pass."""
    parameters = [tensor.detach().clone().requires_grad_() for tensor in fitted().parameters()]
    log = START.clone().requires_grad_()
    for t in range(STEPS):
        gradients = torch.autograd.grad(
            loss(*parameters, log, t), parameters, create_graph=True, materialize_grads=True
        )
        # Nodes of their own: the next gradient in one of them is not to go through another that was made of it.
        parameters = [1 * parameter for parameter in update(parameters, gradients, t, log)]
    validation = validation or (lambda weight, bias: F.mse_loss(XV @ weight.T + bias, YV))
    return torch.autograd.grad(validation(*parameters), log)[0]


def descent(rate=0.1, before=lambda gradients: gradients, after=lambda parameters: parameters):
    """An update of SGD, with what is done to the gradients before it and to the parameters after it."""

    def update(parameters, gradients, t, log):
        pairs = zip(parameters, before(list(gradients)), strict=True)
        return after([parameter - rate * gradient for parameter, gradient in pairs])

    return update


def adam(rate=0.001, betas=(0.9, 0.999), decay=0.0, decoupled=False, amsgrad=False):
    """Adam as its paper writes it, weight decay and AMSGrad as theirs do."""
    state = {}

    def update(parameters, gradients, t, log):
        made = []
        for place, (parameter, slope) in enumerate(zip(parameters, gradients, strict=True)):
            mean, square, largest = state.get(place, (0, 0, torch.zeros_like(parameter)))
            slope = slope if decoupled else slope + decay * parameter
            mean, square = betas[0] * mean + (1 - betas[0]) * slope, betas[1] * square + (1 - betas[1]) * slope**2
            largest = torch.where(square > largest, square, largest) if amsgrad else square
            state[place] = mean, square, largest
            step = mean / (1 - betas[0] ** (t + 1)) / ((largest / (1 - betas[1] ** (t + 1))).sqrt() + 1e-8)
            made.append((parameter * (1 - rate * decay) if decoupled else parameter) - rate * step)
        return made

    return update


def hooked(before=None, after=None, make=lambda module: SGD(module.parameters(), 0.1)):
    """An optimizer with hooks, each given the module."""

    def optimizer(module):
        made = make(module)
        if before is not None:
            made.register_step_pre_hook(lambda *_: before(module))
        if after is not None:
            made.register_step_post_hook(lambda *_: after(module))
        return made

    return optimizer


class Told(Callback):
    """Does something to the lower level's module whenever it was updated."""

    def __init__(self, act):
        self.act = act

    def on_update(self, engine, update):
        if update.level == "fit":
            self.act(engine.graph.problems["fit"].module)


def check(found, expected, tolerance=1e-9):
    assert expected.abs().min() > 1e-6  # both penalties matter
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)
