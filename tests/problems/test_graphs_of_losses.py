"""Losses that ask for their own graph, change it, or leave it in rare ways, against plain PyTorch."""

import copy
import functools

import numpy as np
import pytest
import torch
from plain_bilevel import SOLVERS, Case, Written, X, Y, check, engine_of, flat, trained, variables
from plain_modules import Strength, linear, making, sequential, squares
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from multilevel import Engine, Graph
from multilevel.problems.errors import GraphError
from multilevel.solvers import Dense, FiniteDifference, Identity, ProductError, SolveError, Unrolled

pytestmark = pytest.mark.usefixtures("double_precision")


def fitted(levels, batch):
    return F.mse_loss(levels.fit(batch[0]), batch[1])


def decayed(levels):
    return 0.1 * levels.up.log.exp() * squares(levels.fit.parameters())


def hidden(levels, batch):
    return levels.fit[0](batch[0]).clone()


def rest(levels, h, batch):
    return F.mse_loss(levels.fit[2](h.tanh()), batch[1]) * levels.up.log.exp() + decayed(levels)


def asking(levels, batch):
    prediction = levels.fit(batch[0])
    weight = levels.up.log.exp() if prediction.requires_grad and prediction.grad_fn is not None else 0.0
    return F.mse_loss(prediction, batch[1]) * weight + decayed(levels)


def hooked(levels, batch):
    h = hidden(levels, batch)
    if h.requires_grad:
        h.register_hook(lambda gradient: 2 * gradient)
    return rest(levels, h, batch)


def retained(levels, batch):
    h = hidden(levels, batch)
    h.retain_grad()
    assert not h.is_leaf
    return rest(levels, h, batch)


def scaled_without_gradients(levels, batch):
    h = hidden(levels, batch)
    with torch.no_grad():
        h.mul_(0.3)
        h[:, 0] = 0.5
    return rest(levels, h, batch)


def detached_in_place(levels, batch):
    error = (levels.fit(batch[0]) - batch[1]).square()
    weight = (error * 1.0).detach_()
    return (weight ** levels.up.log.exp() * error).mean()


def gradient_norm(levels, batch):
    """GradNorm: the loss over the norm of its gradient, taken for a constant."""
    slopes = torch.autograd.grad(fitted(levels, batch), list(levels.fit.parameters()), retain_graph=True)
    return fitted(levels, batch) * levels.up.log.exp() / squares(slopes).sqrt() + decayed(levels)


def sharpness(levels, batch):
    """SAM (Foret et al., 2021): the loss uphill, the way there taken for a constant."""
    parameters = dict(levels.fit.named_parameters())
    slopes = torch.autograd.grad(fitted(levels, batch), list(parameters.values()))
    length = levels.up.log.exp() / squares(slopes).sqrt()
    moved = {name: p + length * s for (name, p), s in zip(parameters.items(), slopes, strict=True)}
    return F.mse_loss(functional_call(levels.fit, moved, (batch[0],)), batch[1]) + decayed(levels)


@torch.library.custom_op("multilevel_tests::sine", mutates_args=())
def sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


sine.register_autograd(
    lambda ctx, gradient: gradient * ctx.x.cos(),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "x", inputs[0]),
)


def custom(levels, batch):
    return F.mse_loss(sine(levels.fit(batch[0])), batch[1]) * levels.up.log.exp() + decayed(levels)


def inferred(levels, batch):
    with torch.inference_mode():
        target = levels.fit(0.5 * batch[0])
    return fitted(levels, batch) + levels.up.log.exp() * F.mse_loss(levels.fit(batch[0]), target.clone())


def formatted(levels, batch):
    scale = float(f"{levels.fit(batch[0]).square().mean():.15f}")
    return fitted(levels, batch) * levels.up.log.exp() / scale


def profiled(levels, batch):
    with torch.profiler.record_function("loss"):  # an operator, of no tensors
        return F.mse_loss(levels.fit(batch[0]), batch[1]) * levels.up.log.exp() + decayed(levels)


def copied(levels, batch):
    target = copy.deepcopy(levels.fit)
    return fitted(levels, batch) + levels.up.log.exp() * F.mse_loss(levels.fit(batch[0]), target(0.5 * batch[0]))


def in_an_array(levels, batch):
    x, y = batch
    x[:] *= 1.1
    return F.mse_loss(levels.fit(torch.from_numpy(x)), torch.from_numpy(y)) * levels.up.log.exp() + decayed(levels)


def arrays(x, y):
    return x.numpy().copy(), y.numpy().copy()


LOSSES = [
    asking, hooked, retained, scaled_without_gradients, detached_in_place, gradient_norm, sharpness, custom, inferred,
    formatted, copied, profiled,
]  # fmt: skip
MAKE = making(fit=lambda: sequential(), up=lambda: Strength())
CASES = {loss.__name__: Case(loss.__name__, MAKE, loss, fitted) for loss in LOSSES}
CASES["in_an_array"] = Case(
    "in_an_array",
    MAKE,
    in_an_array,
    lambda levels, batch: F.mse_loss(levels.fit(torch.from_numpy(batch[0])), torch.from_numpy(batch[1])),
    batch=arrays,
)
#: Products that a loss is refused by, or finite differences that the self-check tells of.
UNHELD = {("finite_difference", "scaled_without_gradients"), ("finite_difference", "hooked")}


@pytest.mark.parametrize("solver", ["default", "dense", "finite_difference"])
@pytest.mark.parametrize("name", list(CASES))
def test_a_hypergradient_is_that_of_plain_torch(name, solver):
    if (solver, name) in UNHELD:
        with pytest.warns(UserWarning, match="so finite_difference is wrong"):
            engine_of(CASES[name], SOLVERS[solver]()).hypergradient("up")
        return
    check(CASES[name], solver, engine_of(CASES[name], SOLVERS[solver]()))


FORWARD_REFUSES = [hooked, retained, detached_in_place, gradient_norm, sharpness, custom]


@pytest.mark.parametrize("loss", FORWARD_REFUSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("solver", [Identity(product="forward"), Dense(damping=1.0, product="forward")], ids=str)
def test_forward_products_are_refused_where_a_loss_needs_a_graph(loss, solver):
    with pytest.raises(ProductError, match=r"solver\.product=reverse works if it has a second derivative"):
        engine_of(CASES[loss.__name__], solver).hypergradient("up")


@pytest.mark.parametrize("name", ["asking", "profiled", "scaled_without_gradients", "inferred", "in_an_array"])
def test_forward_products_are_right_where_it_is_only_asked_for(name):
    check(CASES[name], "forward", engine_of(CASES[name], SOLVERS["forward"]()))


def test_forward_products_leave_whole_what_a_loss_gives_to_a_module_outside_the_graph():
    outside = linear()

    def aligned(levels, batch):
        for target, weight in zip(outside.parameters(), levels.fit.parameters(), strict=True):
            target.data = weight.data
        with torch.no_grad():
            target = outside(0.5 * batch[0])
        return fitted(levels, batch) + levels.up.log.exp() * F.mse_loss(levels.fit(batch[0]), target)

    make = making(fit=lambda: linear(), up=lambda: Strength())
    engine = engine_of(Case("aligned", make, aligned, fitted), Dense(damping=1.0, product="forward"))
    check(Case("aligned", make, aligned, fitted), "dense", engine)
    assert torch.equal(outside.weight, engine.graph.problems["fit"].module.weight)


@pytest.mark.parametrize("name", list(CASES))
def test_an_update_is_that_of_plain_torch(name):
    engine = engine_of(CASES[name], None)
    engine.run(1)
    expected = flat(variables(trained(CASES[name]).fit))
    torch.testing.assert_close(flat(variables(engine.graph.problems["fit"].module)), expected, rtol=1e-12, atol=1e-14)


def bilevel(module, function, data, solver=None, optimizer=None):
    up = Strength()
    lower = Written(
        "fit",
        module,
        function,
        optimizer=optimizer or torch.optim.SGD(module.parameters(), 0.1),
        data=data,
        solver=solver,
    )
    return Graph(lower, Written("up", up, fitted, optimizer=torch.optim.SGD(up.parameters(), 0.0), data=[(X, Y)]))


class Caching(nn.Linear):
    @functools.cached_property
    def listed(self):
        return list(self.parameters())


@pytest.mark.parametrize("solver", [None, Dense(), FiniteDifference()], ids=str)
def test_a_list_of_parameters_that_is_made_once_is_refused(solver):
    def cached(levels, batch):
        return fitted(levels, batch) + levels.up.log.exp() * squares(levels.fit.listed)

    with pytest.raises(GraphError, match=r"'fit' uses parameters kept from an earlier evaluation.*build such lists"):
        Engine(bilevel(Caching(4, 1), cached, [(X, Y)], solver)).run(1)


@pytest.mark.parametrize("stacked", [False, True])
def test_parameters_kept_outside_a_loss_are_refused_where_a_later_batch_uses_them(stacked):
    module = linear()
    weights = [module.weight]

    def later(levels, batch):
        value = fitted(levels, batch) * levels.up.log.exp()
        return value + (torch.cat(weights) if stacked else weights[0]).square().sum() if batch[2] else value

    engine = Engine(bilevel(module, later, [(X, Y, False), (X, Y, True)]))
    engine.run(1)
    with pytest.raises(GraphError, match="uses the parameter 'weight' of level 'fit' that was stored outside the loss"):
        engine.run(1)


def test_an_optimizer_whose_step_was_replaced_is_refused_by_unrolled_solvers():
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    step = optimizer.step
    optimizer.step = lambda *arguments: step(*arguments)
    engine = Engine(bilevel(module, asking, [(X, Y)], Unrolled(steps=1), optimizer))
    with pytest.raises(
        SolveError, match=r"'fit': an unrolled.* the level is trained with SGD, whose step was replaced"
    ):
        engine.run(1)


def test_an_optimizer_whose_step_a_scheduler_wraps_is_followed():
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    Engine(bilevel(module, asking, [(X, Y)], Unrolled(steps=1), optimizer)).run(1)


def test_a_generator_of_the_users_own_in_numpy_is_told_of():
    generator = np.random.default_rng(0)

    def noisy(levels, batch):
        return F.mse_loss(levels.fit(batch[0] + generator.standard_normal()), batch[1]) * levels.up.log.exp()

    with pytest.warns(UserWarning, match=r"loss of level 'fit' is .* at the same point: draw random numbers in"):
        Engine(bilevel(linear(), noisy, [(X, Y)])).hypergradient("up")


def test_a_graph_made_in_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(SolveError, match="leave inference mode first"):
        _ = bilevel(linear(), asking, [(X, Y)]).reads
