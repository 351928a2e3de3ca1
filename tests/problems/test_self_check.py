"""The self-check tells of products that are wrong, says which, and is silent about those that are not."""

import random
import re

import numpy as np
import pytest
import torch
from plain_modules import TwiceSine
from torch import nn
from torch.nn import functional as F
from toy import Vector, toy_graph
from wrong_derivatives import (
    Once,
    Stopped,
    StoppedInReverse,
    StraightThrough,
    WrongJvp,
    WrongTwice,
    WrongTwiceForwardToo,
)

from multilevel import Engine, Graph, Problem
from multilevel.__main__ import main
from multilevel.problems import Callback, self_check
from multilevel.solvers import (
    SOLVERS,
    ConjugateGradient,
    Dense,
    FiniteDifference,
    FirstOrder,
    Identity,
    Sama,
    Unrolled,
)
from multilevel.solvers.products import PRODUCTS

SIZE = 5
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


class Notices(Callback):
    def __init__(self):
        self.notices = []

    def on_notice(self, engine, notice):
        self.notices.append(notice)


def functions_of(loss):
    """A lower loss of (p, u), p the trained one, beside a penalty of p; and an upper loss of p."""
    return {
        "p": lambda v: loss(v["p"], v["u"]) + v["p"].square().sum(),
        "u": lambda v: (v["p"] - 1).square().sum() + 0.1 * v["u"].square().sum(),
    }


def notices(loss, solver, dtype, steps=1, **keywords):
    """What is said of a lower level with this loss and solver, over ``steps`` steps."""
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(SIZE, generator=generator, dtype=torch.float64).to(dtype) for name in "pu"}
    heard = Notices()
    graph = toy_graph(functions_of(loss), values, {"p": solver}, rate=1e-3)
    Engine(graph, callbacks=[heard], **keywords).run(steps)
    return heard.notices


def told(lines, used, other, wrong, setting):
    """Whether the one line says what differs from what, by how much, which is wrong, and what to set."""
    (line,) = lines
    assert "\n" not in line
    found = re.fullmatch(
        r"self-check: (mixed|hessian) products at level 'p' by (\w+) differ from those by (\w+) by (\d+)%(.*)", line
    )
    assert found, line
    assert (found[2], found[3]) == (used, other), line
    assert int(found[4]) > 5
    if wrong == used:
        assert f"so {used} is wrong" in line, line
        assert line.endswith(f": set {setting}"), line
    else:
        assert f"so {used} is right" in line, line
        assert "set levels" not in line
    return True


def through(function):
    return lambda p, u: (function(p * u) * u.square()).sum()


@every_dtype
@pytest.mark.parametrize("solver", [Identity(product="reverse"), Identity(), ConjugateGradient(damping=1.0)])
def test_a_wrong_second_derivative(dtype, solver):
    """Without a forward derivative, where only differences of gradients are left to compare with."""
    lines = notices(through(WrongTwice.apply), solver, dtype)
    assert told(lines, "reverse", "finite_difference", "reverse", "levels.p.solver.product=finite_difference")
    assert "an operator of the loss has a wrong derivative" in lines[0]


@every_dtype
def test_a_wrong_second_derivative_beside_a_right_forward_one(dtype):
    loss = through(WrongTwiceForwardToo.apply)
    lines = notices(loss, Identity(product="reverse"), dtype)
    assert told(lines, "reverse", "forward", "reverse", "levels.p.solver.product=forward")
    assert "finite_difference agrees with forward" in lines[0]
    assert told(notices(loss, FiniteDifference(), dtype), "finite_difference", "reverse", "reverse", "")


@every_dtype
@pytest.mark.parametrize("solver", [Identity(product="forward"), Identity(), Dense(product="forward")])
def test_a_wrong_forward_derivative(dtype, solver):
    lines = notices(lambda p, u: (WrongJvp.apply(p).square() * u.square()).sum(), solver, dtype)
    assert told(lines, "forward", "reverse", "forward", "levels.p.solver.product=reverse")
    assert "finite_difference agrees with reverse" in lines[0]


@every_dtype
@pytest.mark.parametrize("loss", [lambda p, u: ((3 * p).sin() * u).sum(), lambda p, u: ((p.abs() * 3).sin() * u).sum()])
def test_a_loss_that_is_not_smooth_over_the_radius(loss, dtype):
    solver = Identity(product="finite_difference", radius=3.0)
    assert told(
        notices(loss, solver, dtype),
        "finite_difference",
        "reverse",
        "finite_difference",
        "levels.p.solver.product=reverse",
    )


def test_a_loss_that_is_not_smooth_over_the_radius_without_a_second_exact_form():
    lines = notices(
        lambda p, u: (TwiceSine.apply(3 * p) * u).sum(),
        Identity(product="finite_difference", radius=3.0),
        torch.float64,
    )
    assert told(lines, "finite_difference", "reverse", "finite_difference", "levels.p.solver.product=reverse")


UNSEEN = {
    "with a forward derivative": Stopped.apply,
    "without one": StoppedInReverse.apply,
}
BY_DIFFERENCES = [
    (FiniteDifference(), "levels.p.solver=identity levels.p.solver.product="),
    (Identity(product="finite_difference"), "levels.p.solver.product="),
    (Sama(product="finite_difference"), "levels.p.solver.product="),
    (FirstOrder(), "levels.p.solver=neumann levels.p.solver.product="),
]


@every_dtype
@pytest.mark.parametrize("stopped", list(UNSEEN))
@pytest.mark.parametrize(("solver", "setting"), BY_DIFFERENCES)
def test_a_stop_gradient_that_torch_does_not_see(stopped, solver, setting, dtype):
    stop = UNSEEN[stopped]
    lines = notices(lambda p, u: (stop(p).exp() * p.square() * u.square()).sum(), solver, dtype)
    assert told(lines, "finite_difference", "reverse", "finite_difference", f"{setting}reverse")
    assert "changes in ways that torch does not see" in lines[0]


@every_dtype
@pytest.mark.parametrize("product", ["reverse", "forward", "auto"])
@pytest.mark.parametrize("stopped", list(UNSEEN))
def test_exact_products_of_such_a_loss_are_not_said_to_be_wrong(stopped, product, dtype):
    """Nor where differences, which are, are all that there is to compare with."""
    stop = UNSEEN[stopped]
    if (stopped, product) != ("without one", "forward"):
        loss = lambda p, u: (stop(p).exp() * p.square() * u.square()).sum()  # noqa: E731
        assert notices(loss, Identity(product=product), dtype) == []


@every_dtype
def test_a_second_derivative_that_is_wrong_in_the_hessian_alone(dtype):
    lines = notices(lambda p, u: WrongTwice.apply(p).sum() + (p * u).sum(), Dense(product="reverse"), dtype)
    assert told(lines, "reverse", "finite_difference", "reverse", "levels.p.solver.product=finite_difference")
    assert lines[0].startswith("self-check: hessian products")


@every_dtype
def test_a_gradient_that_is_declared_is_not_said_to_be_wrong(dtype):
    """Second differences of the loss agree with differences of its gradient, and neither with the gradient itself."""
    loss = lambda p, u: (StraightThrough.apply(p) * u).square().sum()  # noqa: E731
    assert notices(loss, Dense(product="reverse"), dtype) == []


@pytest.mark.parametrize(("share", "said"), [(0.5, ""), (0.9, "it is unclear which is right")])
def test_it_blames_nothing_where_a_hidden_constant_hardly_shows(share, said):
    """The constant takes all but (1 - share)^2 of the loss's curvature, and 1 - share of that of finite differences."""

    def loss(p, u):
        return (50 * p + p * u + (p - share * StoppedInReverse.apply(p)).square() / 2).sum()

    lines = notices(loss, Dense(product="reverse"), torch.float64)
    assert [said in line for line in lines] == [True] * bool(said)


def numpy_detour(x):
    """Leaves torch by DLPack and comes back, as a stop-gradient that torch sees where it leaves."""
    return torch.from_numpy(np.from_dlpack(x.detach())).clone()


@every_dtype
@pytest.mark.parametrize("solver", [solver for solver, _ in BY_DIFFERENCES] + [Identity()])
@pytest.mark.parametrize("stop", [numpy_detour, torch.Tensor.detach, lambda x: torch.tensor(x.tolist(), dtype=x.dtype)])
def test_a_stop_gradient_that_torch_sees_is_held(stop, solver, dtype):
    assert notices(lambda p, u: (stop(p).exp() * p.square() * u.square()).sum(), solver, dtype) == []


SMOOTH = {
    "coupled": lambda p, u: (p.exp() * u.sin()).sum(),
    "not coupled": lambda p, u: p.exp().sum() + u.sin().sum(),
    "coupled by what cancels": lambda p, u: (p.sum() * u.sum()) - (p[:, None] * u[None]).sum(),
    "a scale that a normalization takes away": lambda p, u: (
        F.layer_norm(p * u.square().sum().exp(), (SIZE,)).exp().sum()
    ),
    "coupled by rounding": lambda p, u: (p + u).exp().sum() - (p.exp() * u.exp()).sum(),
    "a large constant": lambda p, u: (p.exp() * u.sin()).sum() + 1e4,
    "small products beside a large gradient": lambda p, u: 1e4 * u.exp().sum() + 1e-4 * (p * u).sum(),
    "relu": lambda p, u: ((p[:, None] * u[None]).relu().sum(1) * u).sum(),
    "no part of the other": lambda p, u: (p[0] * u[0]).square(),
}
SOLVERS_TRIED = [
    *(Identity(product=product) for product in PRODUCTS),
    *(ConjugateGradient(product=product, damping=1.0) for product in PRODUCTS),
    Sama(product="finite_difference"),
    FirstOrder(),
    Unrolled(),
    SOLVERS["auto"](),
]


@every_dtype
@pytest.mark.parametrize("solver", SOLVERS_TRIED, ids=str)
@pytest.mark.parametrize("loss", list(SMOOTH))
def test_it_is_silent_where_products_agree_or_are_mere_noise(loss, solver, dtype):
    assert notices(SMOOTH[loss], solver, dtype) == []


@every_dtype
def test_it_is_told_once_and_at_the_first_hypergradient_that_there_is(dtype):
    wrong = through(WrongTwice.apply)
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(SIZE, generator=generator, dtype=torch.float64).to(dtype) for name in "pqu"}
    late = [0]

    def top(v):
        late[0] += 1
        return ((v["p"] - 1).square().sum() * (late[0] > 4)) + (v["q"] * v["u"]).sum()

    functions = {
        "p": lambda v: wrong(v["p"], v["q"] + v["u"]) + v["p"].square().sum(),
        "q": lambda v: (v["q"] - v["p"]).square().sum(),
        "u": top,
    }
    heard = Notices()
    solvers = dict.fromkeys("pq", Sama(product="reverse"))  # which does not solve p and q together
    Engine(toy_graph(functions, values, solvers, rate=1e-3, approximate=True), callbacks=[heard]).run(6)
    (line,) = heard.notices  # p is passed by the hypergradients of q and of u
    assert "level 'p'" in line


def test_without_callbacks_it_is_a_warning():
    values = {"p": torch.linspace(0.5, 1, SIZE), "u": torch.ones(SIZE)}
    graph = toy_graph(functions_of(through(WrongTwice.apply)), values, {"p": Identity(product="reverse")}, rate=1e-3)
    with pytest.warns(UserWarning, match="self-check: mixed products at level 'p' by reverse differ"):
        Engine(graph).run(2)


def test_it_can_be_turned_off():
    assert notices(through(WrongTwice.apply), Identity(product="reverse"), torch.float64, check=False) == []


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), RuntimeError("[enforce fail] out of memory")],
)
def test_running_out_of_memory_is_one_notice(monkeypatch, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(PRODUCTS["reverse"], "mixed", fails)
    monkeypatch.setattr(PRODUCTS["finite_difference"], "mixed", fails)
    lines = notices(lambda p, u: (p * u).sum(), Identity(product="forward"), torch.float32)
    assert lines == ["self-check: the products at level 'p' were not compared: out of memory; training continues"]


def test_a_derivative_that_is_missing_is_one_notice():
    (line,) = notices(through(Once.apply), Identity(), torch.float32)
    assert line.startswith(
        "self-check: the products at level 'p' were not compared: the autograd.Function Once is marked"
    )
    assert "\n" not in line


def test_an_error_of_any_other_kind_ends_no_run(monkeypatch):
    def fails(*arguments):
        raise IndexError("some\nbug")

    for product in ("reverse", "finite_difference"):
        monkeypatch.setattr(PRODUCTS[product], "mixed", fails)
    lines = notices(lambda p, u: (p * u).sum(), Identity(product="forward"), torch.float32)
    assert lines == ["self-check: the products at level 'p' were not compared: IndexError: some bug"]


class Network(Problem):
    """A network with dropout, batch norm, numpy's and a generator of its own, and a loss that moves them all."""

    def loss(self, levels, batch, draws):
        x, y = batch
        x = x + 0.01 * torch.randn(x.shape, dtype=x.dtype, generator=self.generator)
        x = x + 0.01 * torch.as_tensor(np.random.randn(*x.shape), dtype=x.dtype) + 0.01 * random.random()
        return F.mse_loss(levels.net(x), y) + (levels.weights.value.exp() * levels.net[0].weight.square()).mean()


class Top(Problem):
    def loss(self, levels, batch, draws):
        return F.mse_loss(levels.net(batch[0]), batch[1])


def trained(check, solver, dtype, precision):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2)).to(dtype)
    weights = Vector(torch.zeros(6, 4, dtype=dtype))
    data = [(torch.randn(8, 4, dtype=dtype), torch.randn(8, 2, dtype=dtype)) for _ in range(4)]
    lower = Network("net", net, optimizer=torch.optim.Adam(net.parameters(), 1e-2), data=data, solver=solver, steps=2)
    lower.generator = torch.Generator().manual_seed(1)
    top = Top("weights", weights, optimizer=torch.optim.Adam(weights.parameters(), 1e-2), data=data)
    engine = Engine(Graph(lower, top), check=check, precision=precision, callbacks=[Callback()])
    engine.run(3)
    return {
        "engine": engine.state_dict(),
        "generator": lower.generator.get_state(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],
        "python": random.getstate(),
    }


def leaves_of(value):
    """Numbers and tensors within nested containers, in order."""
    if isinstance(value, dict):
        for key in value:
            yield from leaves_of(value[key])
    elif isinstance(value, list | tuple):
        for element in value:
            yield from leaves_of(element)
    else:
        yield value


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "float32"), (torch.float64, "float32"), (torch.float32, "bf16")]
)
@pytest.mark.parametrize(
    "solver",
    [Identity(), FiniteDifference(), ConjugateGradient(damping=1.0), FirstOrder(), Sama(), Unrolled(steps=2)],
    ids=str,
)
def test_nothing_that_is_trained_depends_on_it(solver, dtype, precision, monkeypatch):
    compared = []
    difference = self_check._Check.difference

    def counted(*arguments):
        compared.append(arguments)
        return difference(*arguments)

    monkeypatch.setattr(self_check._Check, "difference", counted)
    on = list(leaves_of(trained(True, solver, dtype, precision)))
    assert compared
    compared.clear()
    off = list(leaves_of(trained(False, solver, dtype, precision)))
    assert not compared
    assert len(on) == len(off) > 30
    for first, second in zip(on, off, strict=True):
        if isinstance(first, torch.Tensor | np.ndarray):
            assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
        else:
            assert first == second


def test_a_configuration_turns_it_on_and_off(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(self_check.SelfCheck, "compare", lambda *arguments: asked.append(arguments) or "")
    settings = ["recipe=hyper_cleaning", "steps=1", "levels.classify.steps=1", "evaluate=false"]
    assert main(["train", *settings, "check=false", f"output={tmp_path / 'off'}"]) == 0
    assert not asked
    assert main(["train", *settings, f"output={tmp_path / 'on'}"]) == 0
    assert len(asked) == 1
