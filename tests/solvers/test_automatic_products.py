"""``product=auto``: which products it takes, why, and that they are those products to the last bit."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy import toy_graph
from wrong_derivatives import Once, StoppedInReverse, WrongJvp

from multilevel import Engine
from multilevel.problems import Callback
from multilevel.runs.progress import Progress
from multilevel.solvers import ConjugateGradient, Identity, LowerLevel, Sama
from multilevel.solvers.lower_level import ProductChoice
from multilevel.solvers.products import PRODUCTS
from multilevel.solvers.update_rules import UpdateRule

POINT = torch.tensor([0.3, 1.0, -0.4, 2.0], dtype=torch.float64)
VECTOR = {"p": torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)}


class Odd(WrongJvp):
    """exp(x), whose forward derivative fails in a way that says nothing of derivatives."""

    @staticmethod
    def jvp(context, tangent):
        raise RuntimeError("INTERNAL ASSERT\nFAILED: please report")


#: The loss's function of p, which products it allows, and the reason why not the ones before.
CASES = {
    "elementary": (torch.exp, "forward", "every operator of the loss has a forward derivative"),
    "no forward derivative": (
        lambda p: StoppedInReverse.apply(p) * p,
        "reverse",
        "forward fails: the autograd.Function StoppedInReverse has no forward derivative",
    ),
    "no second derivative": (
        Once.apply,
        "finite_difference",
        "forward fails: the autograd.Function Once has no forward derivative; reverse fails: the autograd.Function "
        "Once is marked once_differentiable and has no second derivative",
    ),
    "an error within torch": (
        Odd.apply,
        "reverse",
        "forward fails: forward mode cannot follow the loss (RuntimeError: INTERNAL ASSERT FAILED: please report)",
    ),
}


def lower_of(function, parts=1):
    losses = [lambda v, r, k=k: (function(v["p"]) * r["u"]["v"]).sum().square() * k for k in range(1, 1 + parts)]
    return LowerLevel(losses, {"p": POINT}, {"u": {"v": POINT.cos()}}, torch.float64)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("case", list(CASES))
def test_it_takes_the_first_products_that_the_loss_allows(case, parts):
    function, name, reason = CASES[case]
    lower = lower_of(function, parts)
    products = PRODUCTS["auto"](lower)
    named = PRODUCTS[name](lower_of(function, parts))
    for product in ("hessian", "mixed"):
        found, expected = getattr(products, product)(VECTOR), getattr(named, product)(VECTOR)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(products.gradient(), named.gradient(), rtol=0, atol=0)
    assert lower.choice == ProductChoice(name, reason)
    assert products.chosen == f"product={name}: {reason}"
    assert products.products == named.products


def adam_rule():
    variable = nn.Parameter(POINT.clone())
    return UpdateRule.of(torch.optim.Adam([variable], 0.1), {"p": variable})


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("solver", [Identity, ConjugateGradient, Sama])
def test_a_solver_answers_as_with_the_products_named(solver, case):
    function, name, reason = CASES[case]
    lower = replace(lower_of(lambda p: function(p) + 2 * p), rule=adam_rule())
    found, expected = solver(product="auto").respond(lower, VECTOR), solver(product=name).respond(lower, VECTOR)
    torch.testing.assert_close(found.contributions, expected.contributions, rtol=0, atol=0)
    assert found.report.choice == f"product={name}: {reason}"
    assert expected.report.choice == ""


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_leads_to_no_other_products(error, monkeypatch):
    evaluations = []

    def loss(values, reads):
        evaluations.append(None)
        raise error

    lower = LowerLevel([loss], {"p": POINT}, {"u": {"v": POINT}}, torch.float64)
    for product in ("hessian", "mixed"):
        with pytest.raises(type(error), match="memory"):
            getattr(PRODUCTS["auto"](lower), product)(VECTOR)
    assert lower.choice == ProductChoice()
    assert len(evaluations) == 2


def test_an_error_of_the_loss_itself_leads_to_no_other_products():
    lower = LowerLevel([lambda v, r: v["p"] @ torch.ones(3).double()], {"p": POINT}, {"u": {"v": POINT}})
    with pytest.raises(RuntimeError, match="size"):
        PRODUCTS["auto"](lower).hessian(VECTOR)
    assert lower.choice == ProductChoice()


def test_where_no_products_can_be_had_the_last_error_says_so():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.exp()

        @staticmethod
        def backward(context, slope):
            raise NotImplementedError("derivative for nothing is not implemented")

    with pytest.raises(NotImplementedError, match="derivative for nothing"):
        PRODUCTS["auto"](lower_of(Nothing.apply)).hessian(VECTOR)


class Solves(Callback):
    def __init__(self):
        self.choices = []

    def on_update(self, engine, update):
        self.choices += [report.choice for report in update.solves.values()]


def test_the_choice_is_kept_from_solve_to_solve_and_told_once(monkeypatch, capsys):
    tried = dict.fromkeys(("forward", "reverse", "finite_difference"), 0)
    for name in tried:
        original = PRODUCTS[name].mixed

        def mixed(self, direction, name=name, original=original):
            tried[name] += 1
            return original(self, direction)

        monkeypatch.setattr(PRODUCTS[name], "mixed", mixed)
    functions = {
        "p": lambda v: (Once.apply(v["p"]) * v["u"]).sum() + v["p"].square().sum(),
        "u": lambda v: v["p"].square().sum(),
    }
    heard = Solves()
    graph = toy_graph(functions, {"p": POINT, "u": POINT.cos()}, {"p": Identity()}, rate=1e-3)
    Engine(graph, callbacks=[heard, Progress(None)], check=False).run(4)
    expected = f"product=finite_difference: {CASES['no second derivative'][2]}"
    assert heard.choices == [expected] * 4
    assert tried == {"forward": 1, "reverse": 1, "finite_difference": 4}
    assert capsys.readouterr().err.count(f"level p: {expected}\n") == 1
