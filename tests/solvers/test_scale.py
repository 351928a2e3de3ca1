"""A response is linear in the cotangent: of any size, in half precision, and in code that runs without gradients."""

from dataclasses import dataclass, replace

import pytest
import torch
from solver_table import ROWS, dense_hessian, mixed
from toy import flat, relative_error, toy_graph

from multilevel import Engine
from multilevel.solvers import (
    SOLVERS,
    ConjugateGradient,
    Dense,
    LowerLevel,
    Neumann,
    Response,
    SolveError,
    Solver,
    SolveReport,
    Step,
)
from multilevel.solvers.products.finite_difference import FiniteDifferenceProducts
from multilevel.solvers.update_rules import UpdateRule

every_row = pytest.mark.parametrize("row", ROWS, ids=str)
SIZE = 6
generator = torch.Generator().manual_seed(0)
BASIS = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
MATRIX = BASIS @ torch.linspace(2, 7, SIZE, dtype=torch.float64).diag() @ BASIS.T
COUPLING = torch.randn(SIZE, 4, generator=generator, dtype=torch.float64)
START, COTANGENT = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
UPPER = torch.randn(4, generator=generator, dtype=torch.float64)


def function(values):
    """Strongly convex in the lower level, with third derivatives."""
    p = values["lower"]
    matrix, coupling, u = (one.to(p.dtype) for one in (MATRIX, COUPLING, values["upper"]))
    return p @ matrix @ p / 2 + (p.square() / 2 + p) @ coupling @ u.sin() / 9


def named(vector):
    return {"first": vector[:2], "second": vector[2:].reshape(2, 2)}


def level(dtype, row=None):
    """The lower level after three updates by Adam, recorded as the row's solver wants them; half precision: before."""
    variables = {key: torch.nn.Parameter(value.to(dtype)) for key, value in named(START).items()}
    optimizer = torch.optim.Adam(variables.values(), 0.05)
    reads = {"upper": {"value": UPPER.to(dtype)}}

    def loss(parameters, reads):
        wide = torch.promote_types(dtype, torch.float32)  # half precision is where parameters and products are kept
        return function({"lower": flat(parameters).to(wide), "upper": reads["upper"]["value"]})

    steps = []
    for _ in range(3 if dtype.itemsize > 2 else 0):
        rule = UpdateRule.of(optimizer, variables).recorded(set(variables))
        steps.append(Step([loss], {key: one.detach().clone() for key, one in variables.items()}, reads, rule))
        optimizer.zero_grad()
        loss(variables, reads).backward()
        optimizer.step()
    count = row.solver().recorded_steps if row else 0
    parameters = {key: value.detach() for key, value in variables.items()}
    rule = UpdateRule.of(optimizer, variables)
    return LowerLevel([loss], parameters, reads, dtype, rule=rule, steps=steps[-count:] if count else [])


def respond(solver, lower, cotangent):
    return solver.respond(lower, named(cotangent)).contributions["upper"]["value"]


@every_row
@pytest.mark.parametrize("exponent", [-100, -70, 70, 100])
def test_a_power_of_two_of_the_cotangent_is_that_of_the_response_to_the_last_bit(row, exponent):
    lower, cotangent, scale = level(torch.float32, row), COTANGENT.float(), 2.0**exponent
    expected = respond(row.solver(), lower, cotangent) * scale
    assert expected.isfinite().all()
    assert (expected != 0).all()
    assert torch.equal(respond(row.solver(), lower, cotangent * scale), expected)


@every_row
@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e21, 1e30])
def test_a_multiple_of_the_cotangent_is_that_of_the_response(row, scale):
    """Where the multiple is no power of two the digits differ, and differences of gradients lose half of them."""
    lower, cotangent = level(torch.float32, row), COTANGENT.float()
    expected = respond(row.solver(), lower, cotangent).double()
    found = respond(row.solver(), lower, cotangent * scale).double() / scale
    differences = row.solver().product if hasattr(row.solver(), "product") else row.name
    assert relative_error(found, expected) < (1e-3 if differences in ("finite_difference", "first_order") else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1.0, 1e21, 1e30, 1e-200, 1e200])
@pytest.mark.parametrize(
    "solver", [ConjugateGradient(iterations=30, tolerance=1e-6), Neumann(terms=200, tolerance=1e-6)], ids=str
)
def test_a_cotangent_of_any_size_is_solved_as_dense_algebra_does(solver, scale, dtype):
    if scale in (1e-200, 1e200) and dtype == torch.float32:
        return  # beyond its range
    lower = level(dtype)
    values = {"lower": flat(lower.parameters).double(), "upper": UPPER}
    x = torch.linalg.solve(dense_hessian(function, "lower", values), COTANGENT)
    expected = mixed(function, "lower", values, x)["upper"]
    response = solver.respond(lower, named((COTANGENT * scale).to(dtype)))
    assert response.report.converged
    assert relative_error(response.contributions["upper"]["value"].double() / scale, expected) < 1e-5


@every_row
def test_a_cotangent_of_usual_size_gives_the_bits_that_it_gives_by_itself(row):
    lower, cotangent = level(torch.float32, row), named(COTANGENT.float() * 37)
    solver = row.solver()
    plain = type(solver).respond.__wrapped__(solver, lower, cotangent).contributions["upper"]["value"]
    assert torch.equal(solver.respond(lower, cotangent).contributions["upper"]["value"], plain)


@dataclass
class Own(Solver):
    """A user's solver: the identity on a level whose mixed derivative is minus the identity."""

    def respond(self, lower, cotangent):
        self.seen, self.start = cotangent, lower.start
        self.recording = torch.is_grad_enabled()
        return Response({"upper": {"value": cotangent["p"]}}, SolveReport(), {"p": 3 * cotangent["p"]})


def own_level(start=None):
    zeros = torch.zeros(2)
    return LowerLevel([], {"p": zeros}, {"upper": {"value": zeros}}, start=start)


def test_a_users_solver_sees_a_cotangent_of_about_one_and_a_start_to_match():
    solver, cotangent = Own(), torch.tensor([3e-30, -5e-30])
    with torch.no_grad():
        response = solver.respond(own_level({"p": 2 * cotangent}), {"p": cotangent})
    assert 1 <= solver.seen["p"].abs().max() < 2
    assert solver.recording
    assert torch.equal(solver.start["p"], 2 * solver.seen["p"])
    assert torch.equal(response.contributions["upper"]["value"], cotangent)
    assert torch.equal(response.solution["p"], 3 * cotangent)


def test_a_users_solver_sees_no_cotangent_of_zero_and_none_that_is_not_finite():
    solver = Own()
    response = solver.respond(own_level(), {"p": torch.zeros(2)})
    assert torch.equal(response.contributions["upper"]["value"], torch.zeros(2))
    with pytest.raises(SolveError, match="not finite"):
        solver.respond(own_level(), {"p": torch.tensor([1.0, float("nan")])})
    assert not hasattr(solver, "seen")


@every_row
def test_a_response_is_the_same_where_no_gradients_are_recorded(row):
    lower, cotangent = level(torch.float32, row), COTANGENT.float()
    expected = respond(row.solver(), lower, cotangent)
    with torch.no_grad():
        assert torch.equal(respond(row.solver(), lower, cotangent), expected)
    with torch.inference_mode(), pytest.raises(SolveError, match="leave inference mode"):
        respond(row.solver(), lower, cotangent)


HALF = [
    ("dense", {}, 0.01),
    ("nystrom", {"rank": 6}, 0.02),
    ("conjugate_gradient", {"iterations": 6}, 0.02),
    ("conjugate_gradient", {"iterations": 6, "product": "forward"}, 0.02),
    ("conjugate_gradient", {"iterations": 40, "tolerance": 1e-12, "product": "finite_difference"}, 0.05),
    ("minres", {"iterations": 6}, 0.02),
    ("neumann", {"terms": 60, "tolerance": 0.01}, 0.04),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "options", "tolerance"), HALF)
def test_parameters_in_half_precision(name, options, tolerance, dtype):
    lower = level(dtype)
    values = {"lower": flat(lower.parameters).double(), "upper": lower.reads["upper"]["value"].double()}
    x = torch.linalg.solve(dense_hessian(function, "lower", values), COTANGENT.to(dtype).double())
    expected = mixed(function, "lower", values, x)["upper"]
    found = respond(SOLVERS[name](**options), lower, COTANGENT.to(dtype))
    assert found.dtype == dtype
    assert relative_error(found.double(), expected) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_warm_start_in_half_precision_is_kept_in_the_parameters_dtype(dtype):
    lower, solver = level(dtype), ConjugateGradient(iterations=6, tolerance=0.02, warm_start=True)
    cold = solver.respond(lower, named(COTANGENT.to(dtype)))
    assert {key: one.dtype for key, one in cold.solution.items()} == dict.fromkeys(lower.parameters, dtype)
    warm = solver.respond(replace(lower, start=cold.solution), named(COTANGENT.to(dtype)))
    assert warm.report.products < cold.report.products


CHAIN = {
    "q": lambda v: v["q"].square().sum() + v["q"].exp().sum() / 9 - v["q"] @ v["r"],
    "r": lambda v: v["r"].square().sum() + v["q"].sin().sum() / 4 - v["r"] @ v["u"].tanh(),
}
CHAIN_VALUES = dict(zip("qru", torch.randn(3, 3, generator=generator, dtype=torch.float64) / 2, strict=True))


def hypergradient_of_chain(solver, scale, dtype):
    functions = {**CHAIN, "u": lambda v: scale * (v["r"].square().sum() + v["q"].cos().sum())}
    values = {key: value.to(dtype) for key, value in CHAIN_VALUES.items()}
    engine = Engine(toy_graph(functions, values, dict.fromkeys("qr", solver)))
    return engine.hypergradient("u")["value"].double() / scale


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e21, 1e30])
@pytest.mark.parametrize(
    "solver",
    [ConjugateGradient(iterations=20), Neumann(terms=60), Dense(product="finite_difference"), Dense(product="forward")],
    ids=str,
)
def test_levels_that_read_each_other_are_solved_at_any_size(solver, scale):
    """Against the same problem at scale 1, densely, in float64."""
    expected = hypergradient_of_chain(Dense(), 1.0, torch.float64)
    tolerance = 2e-2 if solver.product == "finite_difference" else 1e-5
    assert relative_error(hypergradient_of_chain(solver, scale, torch.float32), expected) < tolerance


def test_products_see_a_direction_of_about_one(monkeypatch):
    sizes = []
    mixed_product = FiniteDifferenceProducts.mixed

    def seen(self, direction):
        sizes.append(max(tensor.abs().max().item() for tensor in direction.values()))
        return mixed_product(self, direction)

    monkeypatch.setattr(FiniteDifferenceProducts, "mixed", seen)
    for scale in (1e-30, 1e30):
        respond(SOLVERS["finite_difference"](), level(torch.float32), COTANGENT.float() * scale)
    assert all(1 <= size < 2 for size in sizes)
