"""Three levels and more, acyclic: every solver at every level, against dense algebra and against closed forms."""

from itertools import permutations, product

import pytest
import torch
from solver_table import ROWS, exact, implicit
from toy import dense_hypergradient, expected_of, relative_error, toy_graph, trained

from multilevel import Engine
from multilevel.solvers import ConjugateGradient, LowerLevel, Response

EXACT = ConjugateGradient(iterations=60, tolerance=1e-14)
generator = torch.Generator().manual_seed(1)


def randn(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


A, B, C, D = randn(4, 5), randn(4, 3), randn(5, 3), randn(5)
P_CURVE, Q_CURVE = torch.linspace(0.6, 3, 5, dtype=torch.float64), torch.linspace(1, 4, 4, dtype=torch.float64)

#: p reads u; q reads p and u; u reads q, p and itself. Convex in p and in q, with third derivatives.
THREE = {
    "p": lambda v: (P_CURVE * v["p"] ** 2).sum() / 2 + v["p"].sin() @ C @ v["u"].tanh() / 4 - D @ v["p"],
    "q": lambda v: (Q_CURVE * v["q"] ** 2).sum() / 2 + v["q"].cos() @ (A @ v["p"] + B @ v["u"]) / 8,
    "u": lambda v: (v["q"] - 1).square().sum() + v["q"] @ A @ v["p"] + v["u"].square().sum() / 2,
}
THREE_VALUES = {"p": randn(5) / 2, "q": randn(4) / 2, "u": randn(3) / 2}

#: Two levels read p, and the top reads all three.
DIAMOND = {
    "p": THREE["p"],
    "left": lambda v: (Q_CURVE * v["left"] ** 2).sum() / 2 + v["left"] @ A @ v["p"].sin(),
    "right": lambda v: v["right"].square().sum() + v["right"] @ A @ v["p"] + v["right"] @ B @ v["u"],
    "u": lambda v: v["left"] @ v["right"] + v["p"].square().sum() + (v["u"] @ v["u"]) ** 2,
}
DIAMOND_VALUES = {"p": randn(5) / 2, "left": randn(4), "right": randn(4), "u": randn(3)}


FOUR = {
    "o": lambda v: 2 * v["o"].square().sum() + v["o"].cosh().sum() / 9 - v["o"] @ B @ v["u"] - v["o"].sin().sum() / 4,
    "p": lambda v: THREE["p"](v) + v["p"] @ A.T @ v["o"] / 3,
    "q": lambda v: THREE["q"](v) + v["q"] @ v["o"] / 5,
    "u": lambda v: THREE["u"](v) + v["o"].square().sum(),
}
FOUR_VALUES = {"o": randn(4) / 2, **THREE_VALUES}
TWO = {"p": THREE["p"], "u": lambda v: (v["p"] - 1).square().sum() + v["u"].sum() ** 3}
TWO_VALUES = {"p": THREE_VALUES["p"], "u": THREE_VALUES["u"]}

#: graph, values, and the order in which its levels are solved
SHAPES = {
    "two": (TWO, TWO_VALUES, ["p"]),
    "three": (THREE, THREE_VALUES, ["q", "p"]),
    "four": (FOUR, FOUR_VALUES, ["q", "p", "o"]),
    "diamond": (DIAMOND, DIAMOND_VALUES, ["left", "right", "p"]),
}
EPSILON = {torch.float64: 0.0, torch.float32: 2e-3}


@pytest.mark.parametrize("dtype", list(EPSILON), ids=str)
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_solver_in_every_shape(row, shape, dtype):
    functions, values, solved = SHAPES[shape]
    loose = {key: 1e-4 for key in row.options if key == "tolerance" and dtype == torch.float32}
    start = {name: value.to(dtype) for name, value in values.items()}
    cast = {name: lambda v, f=f: f({k: o.double() for k, o in v.items()}).to(dtype) for name, f in functions.items()}
    solvers = {name: row.solver(**loose) for name in solved}
    engine, now, pasts = trained(toy_graph(cast, start, solvers, rate=0.03, steps=2))
    found = engine.hypergradient("u")["value"].double()
    if dtype == torch.float32 and row.trains:  # the oracle replays updates in float64, so there they are, too
        double = {name: value.double() for name, value in start.items()}
        same = {name: row.solver(**loose) for name in solved}
        expected = trained(toy_graph(functions, double, same, rate=0.03, steps=2))[0].hypergradient("u")["value"]
        assert relative_error(found, expected) < len(solved) * row.tolerance + EPSILON[dtype]
        return
    point = {name: value.double() for name, value in now.items()}
    expected = expected_of(functions, "u", values, point, dict.fromkeys(solved, row), pasts, rate=0.03)
    assert relative_error(found, expected) < len(solved) * row.tolerance + EPSILON[dtype]


@pytest.mark.parametrize(("row_p", "row_q"), list(product(ROWS, ROWS)), ids=str)
def test_every_solver_at_every_level(row_p, row_q):
    solvers = {"p": row_p.solver(), "q": row_q.solver()}
    engine, values, pasts = trained(toy_graph(THREE, THREE_VALUES, solvers, rate=0.03, steps=2))
    found = engine.hypergradient("u")["value"]
    expected = expected_of(THREE, "u", THREE_VALUES, values, {"q": row_q, "p": row_p}, pasts, rate=0.03)
    assert relative_error(found, expected) < row_p.tolerance + row_q.tolerance


def test_quadratic_levels_at_their_minima_give_the_total_derivative():
    functions = {
        "p": lambda v: (P_CURVE * v["p"] ** 2).sum() / 2 - v["p"] @ C @ v["u"] - D @ v["p"],
        "q": lambda v: (Q_CURVE * v["q"] ** 2).sum() / 2 - v["q"] @ (A @ v["p"] + B @ v["u"]),
        "u": THREE["u"],
    }

    def minima(u):
        p = (C @ u + D) / P_CURVE
        return {"p": p, "q": (A @ p + B @ u) / Q_CURVE, "u": u}

    u = THREE_VALUES["u"].clone().requires_grad_()
    expected = torch.autograd.grad(functions["u"](minima(u)), u)[0]
    values = {name: value.detach() for name, value in minima(u).items()}
    found = Engine(toy_graph(functions, values, {"p": EXACT, "q": EXACT})).hypergradient("u")["value"]
    assert relative_error(found, expected) < 1e-8


class Counted(ConjugateGradient):
    def respond(self, lower: LowerLevel, cotangent) -> Response:
        self.solved = getattr(self, "solved", 0) + 1
        return super().respond(lower, cotangent)


@pytest.mark.parametrize("order", [one for one in permutations(DIAMOND) if one[-1] == "u" and one[0] == "p"], ids=str)
def test_a_diamond_solves_each_level_once_in_any_order(order):
    solvers = {name: Counted(iterations=60, tolerance=1e-14) for name in ("p", "left", "right")}
    engine = Engine(toy_graph(DIAMOND, DIAMOND_VALUES, solvers, order))
    found = engine.hypergradient("u")["value"]
    contributions = dict.fromkeys(("p", "left", "right"), implicit(exact))
    expected = dense_hypergradient(DIAMOND, DIAMOND_VALUES, ["left", "right", "p"], "u", contributions)
    assert relative_error(found, expected) < 1e-8
    assert [solver.solved for solver in solvers.values()] == [1, 1, 1]


def test_the_order_of_listing_does_not_matter_where_levels_are_independent():
    """p below q or q below p: whatever is listed, q is solved before the p that it reads."""
    solvers = {"p": EXACT, "q": EXACT}
    found = [
        Engine(toy_graph(THREE, THREE_VALUES, solvers, order)).hypergradient("u")["value"]
        for order in (("p", "q", "u"), ("q", "p", "u"))
    ]
    assert relative_error(found[1], found[0]) < 1e-12


def test_a_level_in_the_middle_has_a_hypergradient_of_its_own():
    functions = {
        "p": lambda v: (P_CURVE * v["p"] ** 2).sum() / 2 - v["p"] @ A.T @ v["q"],
        "q": lambda v: (v["p"] - 1).square().sum() + v["q"].square().sum(),
        "u": lambda v: v["q"].square().sum() + v["u"].sum(),
    }
    q = THREE_VALUES["q"].clone().requires_grad_()
    p = (A.T @ q) / P_CURVE
    expected = torch.autograd.grad((p - 1).square().sum() + q.square().sum(), q)[0]
    values = {"p": p.detach(), "q": q.detach(), "u": THREE_VALUES["u"]}
    engine = Engine(toy_graph(functions, values, {"p": EXACT, "q": EXACT}))
    assert relative_error(engine.hypergradient("q")["value"], expected) < 1e-9
    assert torch.equal(engine.hypergradient("p")["value"], P_CURVE * values["p"] - A.T @ values["q"])


def test_no_path_leaves_the_direct_gradient():
    functions = {"p": lambda v: v["p"].square().sum(), "u": lambda v: v["u"].square().sum() + 0 * v["p"].sum()}
    engine = Engine(toy_graph(functions, {"p": randn(2), "u": torch.ones(3, dtype=torch.float64)}, {}))
    assert torch.equal(engine.hypergradient("u")["value"], torch.full((3,), 2.0, dtype=torch.float64))
