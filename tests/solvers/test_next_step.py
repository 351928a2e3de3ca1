"""x with scale=null: the derivative of the optimizer's next step in its gradient, against steps written out."""

from dataclasses import replace

import pytest
import torch

from multilevel.solvers import FiniteDifference, Identity, LowerLevel, Sama
from multilevel.solvers.update_rules import UpdateRule

generator = torch.Generator().manual_seed(0)
START, PULL, COTANGENT = torch.randn(3, 5, generator=generator, dtype=torch.float64)
RATE = 0.1


def loss(parameters, reads):
    return parameters["p"].square().sum() - reads["upper"]["r"] @ parameters["p"]


def level(kind, updated=True, clip_norm=None, **options):
    """A level whose mixed derivative is minus the identity, so that its contribution is x."""
    p = torch.nn.Parameter(START.clone())
    optimizer, reads = kind([p], lr=RATE, **options), {"upper": {"r": PULL}}
    if updated:
        loss({"p": p}, reads).backward()
        optimizer.step()
    rule = UpdateRule.of(optimizer, {"p": p}, clip_norm)
    return LowerLevel([loss], {"p": p.detach()}, reads, torch.float64, rule=rule)


def x_of(solver, lower):
    return solver.respond(lower, {"p": COTANGENT}).contributions["upper"]["r"]


each_solver = pytest.mark.parametrize(
    "solver", [Identity(scale=None), FiniteDifference(scale=None), Sama(scale=None, product="reverse")], ids=str
)


@each_solver
@pytest.mark.parametrize(
    ("options", "updated", "factor"),
    [
        ({}, True, 1.0),
        ({"weight_decay": 0.5}, True, 1.0),
        ({"momentum": 0.9}, True, 1.0),
        ({"momentum": 0.9, "dampening": 0.3}, True, 0.7),
        ({"momentum": 0.9, "dampening": 0.3}, False, 1.0),  # the first step fills the buffer undamped
        ({"momentum": 0.9, "nesterov": True}, True, 1.9),
    ],
    ids=str,
)
def test_sgd(options, updated, factor, solver):
    response = solver.respond(level(torch.optim.SGD, updated, **options), {"p": COTANGENT})
    torch.testing.assert_close(response.contributions["upper"]["r"], RATE * factor * COTANGENT, rtol=1e-6, atol=0)
    assert response.report.products == 1
    evaluations = 2 if isinstance(solver, FiniteDifference) else 1
    assert response.report.evaluations == evaluations  # a linear step needs no gradient


@each_solver
def test_clipping_is_part_of_the_step(solver):
    lower = level(torch.optim.SGD, clip_norm=0.5)
    gradient = 2 * lower.parameters["p"] - PULL
    length = gradient.norm()
    assert length > 0.5
    along = gradient * (gradient @ COTANGENT) / length / (length + 1e-6)
    expected = RATE * 0.5 / (length + 1e-6) * (COTANGENT - along)
    torch.testing.assert_close(x_of(solver, lower), expected, rtol=1e-6, atol=1e-12)
    loose = level(torch.optim.SGD, clip_norm=1e6)
    torch.testing.assert_close(x_of(solver, loose), RATE * COTANGENT, rtol=1e-6, atol=0)


@each_solver
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam(kind, solver):
    """D from the paper's formulas, in closed form; decoupled weight decay is no part of it."""
    decay = 0.1 if kind is torch.optim.AdamW else 0.0
    lower = level(kind, weight_decay=decay, eps=1e-3)
    first, gradient = 2 * START - PULL, 2 * lower.parameters["p"] - PULL
    mean = (0.9 * 0.1 * first + 0.1 * gradient) / (1 - 0.9**2)
    root = ((0.999 * 0.001 * first**2 + 0.001 * gradient**2) / (1 - 0.999**2)).sqrt()
    slope_of_root = 0.001 * gradient / (1 - 0.999**2) / root
    slopes = 0.1 / (1 - 0.9**2) / (root + 1e-3) - mean * slope_of_root / (root + 1e-3) ** 2
    torch.testing.assert_close(x_of(solver, lower), RATE * slopes * COTANGENT, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_sama_with_a_number_is_that_multiple(kind):
    lower = level(kind, weight_decay=0.1)
    plain, null = (x_of(Sama(scale=scale, product="reverse"), lower) for scale in (1.0, None))
    torch.testing.assert_close(x_of(Sama(scale=0.25, product="reverse"), lower), plain / 4, rtol=1e-14, atol=0)
    torch.testing.assert_close(null, RATE * plain, rtol=1e-14, atol=0)


def test_a_parameter_with_a_rate_of_zero_does_not_respond():
    p = {name: torch.nn.Parameter(START.clone()) for name in "ab"}
    groups = [{"params": [p["a"]], "lr": 0.0}, {"params": [p["b"]], "lr": RATE}]

    def both(parameters, reads):
        return sum((p.square() / 2 - reads["upper"][name] * p).sum() for name, p in parameters.items())

    reads = {"upper": {"a": PULL, "b": PULL}}
    rule = UpdateRule.of(torch.optim.AdamW(groups), p)
    lower = LowerLevel([both], {name: value.detach() for name, value in p.items()}, reads, torch.float64, rule=rule)
    for solver in (Identity(scale=None), Sama(scale=None), Sama()):
        contributions = solver.respond(lower, dict.fromkeys("ab", COTANGENT)).contributions["upper"]
        assert not contributions["a"].any()
        assert contributions["b"].all()


def test_no_rule_is_needed_for_a_number():
    lower = replace(level(torch.optim.SGD), rule=None)
    torch.testing.assert_close(x_of(Identity(scale=0.5, product="reverse"), lower), COTANGENT / 2, rtol=1e-14, atol=0)
