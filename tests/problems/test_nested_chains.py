"""Levels that read each other: hypergradients of the re-solved problem."""

import math

import pytest
import torch
from toy import relative_error, toy_graph

from multilevel import Engine
from multilevel.problems import NestedChainError
from multilevel.solvers import SOLVERS, ConjugateGradient, Dense, FirstOrder, Minres, ProductError, Solution, Unrolled

DOUBLE = {"dtype": torch.float64}
generator = torch.Generator().manual_seed(3)


def randn(*shape):
    return torch.randn(*shape, generator=generator, **DOUBLE)


A, B, C, D = randn(3, 2), randn(2, 2), randn(3, 3), randn(2, 3)
COUPLING, TARGET = randn(2, 4), randn(2)
EXACT = [Dense(), ConjugateGradient(iterations=60, tolerance=1e-14), Minres(iterations=60, tolerance=1e-14)]


def minimum(function, start):
    """Newton's method on a loss of one vector, in float64, to the limit of the arithmetic."""
    value = start.clone()
    for _ in range(60):
        gradient = torch.func.grad(function)(value)
        step = torch.linalg.solve(torch.func.hessian(function)(value), gradient)
        value = value - step
        if step.norm() < 1e-14:
            break
    return value


def quadratic():
    """r reads q and u, q reads r: everything linear."""
    curvature_q, curvature_r = torch.tensor([2.0, 3.0, 4.0], **DOUBLE), torch.tensor([5.0, 7.0], **DOUBLE)
    functions = {
        "q": lambda v: (curvature_q * v["q"] ** 2).sum() / 2 - v["q"] @ A @ v["r"],
        "r": lambda v: (curvature_r * v["r"] ** 2).sum() / 2 + v["q"] @ C @ v["q"] / 9 - v["r"] @ COUPLING @ v["u"],
        "u": lambda v: (v["r"] - TARGET).square().sum() + v["q"].square().sum() + v["u"].square().sum() / 3,
    }

    def minima(u):
        q_of_r = A / curvature_q[:, None]
        hessian = curvature_r.diag() + q_of_r.T @ (C + C.T) @ q_of_r / 9
        r = torch.linalg.solve(hessian, COUPLING @ u)
        return {"q": q_of_r @ r, "r": r, "u": u}

    return functions, minima, randn(4)


def non_quadratic():
    """q's minimum has no closed form: Newton for q within Newton for r."""
    functions = {
        "q": lambda v: v["q"].cosh().sum() + v["q"].square().sum() * v["r"].exp().sum() / 8 - v["q"] @ A @ v["r"],
        "r": lambda v: (
            2 * v["r"].square().sum() + (v["q"] @ A).sin() @ v["r"] / 3 - (v["r"] @ COUPLING @ v["u"]).tanh()
        ),
        "u": lambda v: (v["r"] - TARGET).square().sum() + v["q"].sin().sum() + v["u"].square().sum(),
    }

    def q_of(r):
        return minimum(lambda q: functions["q"]({"q": q, "r": r}), torch.zeros(3, **DOUBLE))

    def total(r, u):
        """d/dr of r's loss with q responding."""
        q = q_of(r)
        slope_r, slope_q = torch.func.grad(lambda rr, qq: functions["r"]({"q": qq, "r": rr, "u": u}), (0, 1))(r, q)
        hessian = torch.func.hessian(lambda qq: functions["q"]({"q": qq, "r": r}))(q)
        mixed = torch.func.jacfwd(lambda rr: torch.func.grad(lambda qq: functions["q"]({"q": qq, "r": rr}))(q))(r)
        return slope_r - mixed.T @ torch.linalg.solve(hessian, slope_q)

    def minima(u):
        r = torch.zeros(2, **DOUBLE)
        for _ in range(50):
            columns = [(total(r + 1e-5 * e, u) - total(r - 1e-5 * e, u)) / 2e-5 for e in torch.eye(2, **DOUBLE)]
            step = torch.linalg.solve(torch.stack(columns, 1), total(r, u))
            r = r - step
            if step.norm() < 1e-13:
                break
        return {"q": q_of(r), "r": r, "u": u}

    return functions, minima, randn(4) / 2


def resolved(functions, minima, u):
    """Central differences of the upper loss with the levels below solved again."""
    slopes = []
    for unit in torch.eye(len(u), **DOUBLE):
        ahead, behind = (functions["u"](minima(u + sign * 1e-4 * unit)) for sign in (1, -1))
        slopes.append((ahead - behind) / 2e-4)
    return torch.stack(slopes)


@pytest.mark.parametrize("solver", EXACT, ids=str)
def test_a_quadratic_chain_at_its_minima_gives_the_total_derivative(solver):
    functions, minima, start = quadratic()
    u = start.clone().requires_grad_()
    expected = torch.autograd.grad(functions["u"](minima(u)), u)[0]
    values = {name: value.detach() for name, value in minima(u).items()}
    engine = Engine(toy_graph(functions, values, {"q": solver, "r": solver}))
    assert relative_error(engine.hypergradient("u")["value"], expected) < 1e-6


@pytest.fixture(scope="module")
def solved_again():
    """The problem that is not quadratic, its minima, and its hypergradient."""
    functions, minima, u = non_quadratic()
    return functions, minima(u), resolved(functions, minima, u)


@pytest.mark.parametrize("product", ["reverse", "forward"])
@pytest.mark.parametrize("solver", EXACT, ids=str)
def test_a_chain_that_is_not_quadratic_agrees_with_the_problem_solved_again(solver, product, solved_again):
    functions, values, expected = solved_again
    solver.product = product
    engine = Engine(toy_graph(functions, values, {"q": solver, "r": solver}))
    assert relative_error(engine.hypergradient("u")["value"], expected) < 1e-4


def test_the_chain_checked_by_hand():
    functions = {
        "q": lambda v: (v["r"].exp() * v["q"] ** 2 / 2 - v["q"]).sum(),
        "r": lambda v: (v["r"] ** 2 / 2 + v["q"] - v["u"] * v["r"]).sum(),
        "u": lambda v: v["r"].sum(),
    }
    u = torch.tensor([0.3], **DOUBLE)
    # q = exp(-r), so that r solves r - exp(-r) = u, and dr/du = 1 / (1 + exp(-r)).
    r = minimum(lambda r: (r**2 / 2 + (-r).exp() - u * r).sum(), torch.zeros(1, **DOUBLE))
    values = {"q": (-r).exp(), "r": r, "u": u}
    found = Engine(toy_graph(functions, values, {"q": Dense(), "r": Dense()})).hypergradient("u")["value"]
    assert found.item() == pytest.approx(1 / (1 + (-r).exp().item()), rel=1e-10)
    assert found.item() == pytest.approx(0.682, abs=5e-4)


def chain_of_four():
    """s reads r and u, r reads q and s, q reads r and s."""
    functions = {
        "q": lambda v: v["q"].square().sum() + v["q"].sum() ** 4 / 50 - v["q"] @ A @ v["r"] - v["q"] @ C @ v["s"] / 4,
        "r": lambda v: 2 * v["r"].square().sum() + v["q"].sin().sum() / 4 - v["r"] @ D @ v["s"],
        "s": lambda v: (
            3 * v["s"].square().sum() + v["r"].cos().sum() / 3 + v["q"].square().sum() / 5 - v["s"].sum() * v["u"].sum()
        ),
        "u": lambda v: v["s"].sum() + v["r"].square().sum() + v["q"].sum() + v["u"].square().sum(),
    }

    def descend(total, start):
        value = start.clone()
        for _ in range(40):
            jacobian = torch.stack(
                [(total(value + 1e-5 * e) - total(value - 1e-5 * e)) / 2e-5 for e in torch.eye(len(value), **DOUBLE)], 1
            )
            step = torch.linalg.solve(jacobian, total(value))
            value = value - step
            if step.norm() < 1e-11:
                break
        return value

    def engine_at(q, r, s, u, top):
        values = {"q": q, "r": r, "s": s, "u": u}
        return Engine(toy_graph(functions, values, dict.fromkeys("qrs", Dense()))).hypergradient(top)["value"]

    def q_of(r, s):
        return minimum(lambda q: functions["q"]({"q": q, "r": r, "s": s}), torch.zeros(3, **DOUBLE))

    def r_of(s):
        # r's own hypergradient goes through q alone, which test_adjoint_pass checks against closed forms.
        return descend(lambda r: engine_at(q_of(r, s), r, s, torch.zeros(1, **DOUBLE), "r"), torch.zeros(2, **DOUBLE))

    def minima(u):
        s = torch.zeros(3, **DOUBLE)

        def total(s):
            r = r_of(s)
            slopes = []
            for unit in torch.eye(3, **DOUBLE):
                ends = []
                for sign in (1, -1):
                    moved = s + sign * 1e-4 * unit
                    r = r_of(moved)
                    ends.append(functions["s"]({"q": q_of(r, moved), "r": r, "s": moved, "u": u}))
                slopes.append((ends[0] - ends[1]) / 2e-4)
            return torch.stack(slopes)

        for _ in range(8):  # the total Hessian is near that of 3 s^2
            s = s - total(s) / 6
        r = r_of(s)
        return {"q": q_of(r, s), "r": r, "s": s, "u": u}

    return functions, minima, torch.tensor([0.4], **DOUBLE)


@pytest.mark.slow
def test_a_chain_of_four_agrees_with_the_problem_solved_again():
    functions, minima, u = chain_of_four()
    engine = Engine(toy_graph(functions, minima(u), dict.fromkeys("qrs", Dense())))
    assert engine.graph.blocks("u")[0].levels == ("q", "r", "s")
    assert relative_error(engine.hypergradient("u")["value"], resolved(functions, minima, u)) < 1e-4


@pytest.mark.parametrize("solver", [FirstOrder(), Unrolled(), SOLVERS["sama"](), SOLVERS["auto"]()], ids=str)
def test_what_cannot_be_exact_is_an_error_unless_approximate(solver):
    functions, minima, u = quadratic()
    with pytest.raises(NestedChainError, match=r"q, r read each other below 'u'.*approximate=true"):
        Engine(toy_graph(functions, minima(u), {"q": Dense(), "r": solver}))


def test_approximate_leaves_the_inner_response_out_of_the_outer_hessian():
    functions, minima, u = quadratic()
    values = minima(u)
    solvers = {"q": Dense(), "r": FirstOrder(steps=500)}
    found = Engine(toy_graph(functions, values, solvers, approximate=True)).hypergradient("u")["value"]
    slope_q = 2 * values["q"]
    slope_r = 2 * (values["r"] - TARGET) + A.T @ (slope_q / torch.tensor([2.0, 3.0, 4.0], **DOUBLE))
    expected = COUPLING.T @ (slope_r / torch.tensor([5.0, 7.0], **DOUBLE)) + 2 * u / 3
    assert relative_error(found, expected) < 1e-5


def distance(v):
    return torch.cdist((v["q"] + v["r"])[None], torch.full((1, 2), 3.0, **DOUBLE)).square().sum()


def alignment(v):
    log_probabilities = (v["q"] + v["r"]).log_softmax(0).expand(3, 1, 2)
    return torch.nn.functional.ctc_loss(log_probabilities, torch.tensor([[1]]), torch.tensor([3]), torch.tensor([1]))


def has_a_second_derivative(function):
    v = {"q": torch.ones(2, **DOUBLE, requires_grad=True), "r": torch.ones(2, **DOUBLE)}
    (slope,) = torch.autograd.grad(function(v), v["q"], create_graph=True)
    try:
        torch.autograd.grad(slope.sum(), v["q"])
    except (RuntimeError, NotImplementedError):
        return False
    return True


@pytest.mark.parametrize(
    ("function", "product", "name"),
    [
        (distance, "reverse", "_cdist"),
        (distance, "forward", "_cdist"),
        (distance, "finite_difference", "_cdist"),
        (alignment, "reverse", "_ctc_loss"),
        (alignment, "finite_difference", "_ctc_loss"),
    ],
)
def test_an_operator_without_a_second_derivative_in_a_chain_is_named(function, product, name):
    if has_a_second_derivative(function):
        pytest.skip("this version of torch has the second derivative")
    functions = {
        "q": function,
        "r": lambda v: v["r"].square().sum() + v["q"].sum() - v["r"].sum() * v["u"].sum(),
        "u": lambda v: v["r"].sum(),
    }
    values, solvers = {key: torch.ones(2, **DOUBLE) for key in "qru"}, dict.fromkeys("qr", Dense(product=product))
    engine = Engine(toy_graph(functions, values, solvers))
    with pytest.raises(ProductError, match=rf"{name}.* lacks a higher derivative.*approximate=true"):
        engine.hypergradient("u")


def test_every_evaluation_of_a_chain_is_counted():
    functions, minima, u = quadratic()
    calls = dict.fromkeys("qr", 0)

    def counted(name):
        def function(values):
            calls[name] += 1
            return functions[name](values)

        return function

    counting = {**functions, "q": counted("q"), "r": counted("r")}
    engine = Engine(toy_graph(counting, minima(u), dict.fromkeys("qr", Dense())), check=False)
    calls.update(q=0, r=0)
    found = engine.solve_hypergradient("u")
    assert {level: report.evaluations for level, report in found.reports.items()} == calls


GOOD = {"residual": 1e-9, "converged": True}
FAIR = {"residual": 0.1, "converged": False, "cause": "fair"}
BAD = {"residual": 0.5, "converged": False, "cause": "bad"}
FAILED = {"residual": 0.2, "converged": False, "cause": "failed", "failed": True}
UNKNOWN = {"residual": None, "converged": None}


class Labelled(Dense):
    """Solves, and calls its first solves what it is told to, the others good."""

    def solve(self, system):
        outcome = next(self.outcomes, GOOD)
        return Solution(super().solve(system).x, **outcome)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([GOOD], GOOD),
        ([BAD], BAD),
        ([GOOD, FAIR, BAD, FAIR], BAD),
        ([BAD, FAIR], BAD),
        ([FAILED, BAD], {"residual": 0.5, "converged": False, "cause": "failed", "failed": True}),
        ([GOOD, {**BAD, "residual": math.nan}], {**BAD, "residual": math.nan}),
        ([UNKNOWN] * 99, UNKNOWN),
    ],
)
@pytest.mark.parametrize("level", ["q", "r"])
def test_the_report_of_a_chain_is_that_of_its_worst_solve(level, outcomes, expected):
    """The inner level is solved several times, the outer once."""
    functions, minima, u = quadratic()
    solver = Labelled()
    engine = Engine(toy_graph(functions, minima(u), {"q": Dense(), "r": Dense(), level: solver}))
    if level == "r":
        outcomes = outcomes[:1]
        expected = outcomes[0]
    solver.outcomes = iter(outcomes)
    report = engine.solve_hypergradient("u").reports[level]
    assert report.residual == pytest.approx(expected["residual"], nan_ok=True)
    assert report.converged == expected["converged"]
    assert report.cause == expected.get("cause", "")
    assert report.failed == expected.get("failed", False)


def test_a_chain_through_which_nothing_comes_has_solved_exactly():
    functions, minima, u = quadratic()
    functions["u"] = lambda v: v["u"].square().sum() + 0 * v["r"].sum() + 0 * v["q"].sum()
    functions["r"] = lambda v: v["r"].square().sum() + 0 * v["q"].sum() - v["r"] @ COUPLING @ v["u"]
    found = Engine(toy_graph(functions, minima(u), dict.fromkeys("qr", Dense()))).solve_hypergradient("u")
    torch.testing.assert_close(found.values["value"], 2 * u)
    assert {(report.residual, report.converged) for report in found.reports.values()} == {(0.0, True)}
