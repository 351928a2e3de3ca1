"""Properties that hold for every solver, on problems drawn by hypothesis."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from solver_table import ROWS, dense_hessian
from toy import toy_graph, trained

from multilevel.problems.lower_levels import lower_level
from multilevel.solvers import SOLVERS, LowerLevel

few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
DOUBLE = {"dtype": torch.float64}
#: Solvers of the one system; the others depend on the optimizer's past.
STATIC = [row for row in ROWS if not row.trains]


def problem(seed, size, sizes=None, low=1.0, high=6.0):
    """A lower loss with third derivatives and a definite Hessian, its parameters cut into tensors of ``sizes``."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, **DOUBLE))[0]
    matrix = basis @ torch.linspace(low, high, size, **DOUBLE).diag() @ basis.T
    coupling, point = (torch.randn(*shape, generator=generator, **DOUBLE) for shape in ((size, 3), (size,)))
    upper = torch.randn(3, generator=generator, **DOUBLE)
    names = [str(index) for index in range(len(sizes or [size]))]

    def loss(parameters, reads):
        p = torch.cat([parameters[name].reshape(-1) for name in names])
        return p @ matrix @ p / 2 + p.cosh().log().sum() + p.sin() @ coupling @ reads["u"]["v"] / 10

    def cut(vector):
        return dict(zip(names, vector.split(sizes or [size]), strict=True))

    lower = LowerLevel([loss], cut(point), {"u": {"v": upper}}, torch.float64)
    return lower, cut, lambda: torch.randn(size, generator=generator, **DOUBLE)


def contribution(solver, lower, cotangent):
    return solver.respond(lower, cotangent).contributions["u"]["v"]


@pytest.mark.parametrize("row", STATIC, ids=str)
@few
@given(seed=seeds, size=st.integers(2, 12), factors=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_linear_in_the_cotangent(row, seed, size, factors):
    lower, cut, draw = problem(seed, size)
    solver, (one, other) = row.solver(), (draw(), draw())
    together = contribution(solver, lower, cut(factors[0] * one + factors[1] * other))
    parts = [contribution(solver, lower, cut(vector)) for vector in (one, other)]
    apart = factors[0] * parts[0] + factors[1] * parts[1]
    scale = abs(factors[0]) * parts[0].norm() + abs(factors[1]) * parts[1].norm() + 1e-12
    assert (together - apart).norm() / scale < 10 * row.tolerance


@pytest.mark.parametrize("row", STATIC, ids=str)
@few
@given(seed=seeds, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_invariant_to_how_parameters_are_cut_into_tensors(row, seed, sizes):
    whole, cut_whole, draw = problem(seed, sum(sizes))
    pieces, cut_pieces, _ = problem(seed, sum(sizes), sizes)
    cotangent = draw()
    one = contribution(row.solver(), whole, cut_whole(cotangent))
    other = contribution(row.solver(), pieces, cut_pieces(cotangent))
    assert (one - other).norm() <= row.tolerance * one.norm() + 1e-12


@pytest.mark.parametrize("row", [row for row in ROWS if row.trains], ids=str)
@settings(few, max_examples=4)
@given(seed=seeds, size=st.integers(2, 6), factors=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_what_goes_through_updates_is_linear_in_the_cotangent(row, seed, size, factors):
    static, cut, draw = problem(seed, size)
    functions = {
        "p": lambda v: static.losses[0](cut(v["p"]), {"u": {"v": v["u"]}}),
        "u": lambda v: v["p"].square().sum() + v["u"].sum(),
    }
    values = {"p": torch.cat(list(static.parameters.values())), "u": static.reads["u"]["v"]}
    engine = trained(toy_graph(functions, values, {"p": row.solver()}, rate=0.03, steps=3))[0]
    lower = lower_level(engine.evaluator, engine.histories["p"].record, "p", ["u"], list(engine.histories["p"].updates))
    one, other = draw(), draw()

    def response(vector):
        return row.solver().respond(lower, {"value": vector}).contributions["u"]["value"]

    parts = [response(one), response(other)]
    apart = factors[0] * parts[0] + factors[1] * parts[1]
    scale = abs(factors[0]) * parts[0].norm() + abs(factors[1]) * parts[1].norm() + 1e-12
    assert (response(factors[0] * one + factors[1] * other) - apart).norm() / scale < 10 * row.tolerance


BUDGETS = {
    "neumann": lambda n: {"terms": n},
    "conjugate_gradient": lambda n: {"iterations": n, "tolerance": 0.0},
    "minres": lambda n: {"iterations": n, "tolerance": 0.0},
    "nystrom": lambda n: {"rank": n, "damping": 1e-3},
    "first_order": lambda n: {"steps": n},
}
WITHOUT = {"identity", "finite_difference", "sama", "dense", "auto", "unrolled", "unrolled_forward"}


def test_every_solver_has_a_budget_or_none():
    assert set(BUDGETS) | WITHOUT == set(SOLVERS)


@pytest.mark.parametrize("name", list(BUDGETS))
@few
@given(seed=seeds)
@example(seed=919860)
def test_the_residual_at_full_budget_is_below_that_at_a_quarter(name, seed):
    """The residual is what the solvers lower; the error of a hypergradient may rise on the way."""
    lower, cut, draw = problem(seed, 16, low=1.0, high=30.0)
    cotangent, values = draw(), {"p": lower.parameters["0"], "u": lower.reads["u"]["v"]}

    def seen(parameters, reads):  # with a mixed derivative of minus the identity: the contribution is x
        return lower.losses[0](parameters, lower.reads) - parameters["0"] @ reads["u"]["v"]

    level = replace(lower, losses=[seen], reads={"u": {"v": torch.zeros(16, **DOUBLE)}})
    hessian = dense_hessian(lambda v: lower.losses[0]({"0": v["p"]}, lower.reads), "p", values)
    damped = hessian + BUDGETS[name](1).get("damping", 0.0) * torch.eye(16, **DOUBLE)
    residuals = [
        (damped @ contribution(SOLVERS[name](**BUDGETS[name](budget)), level, cut(cotangent)) - cotangent).norm()
        for budget in (4, 16)
    ]
    assert residuals[1] < residuals[0]
