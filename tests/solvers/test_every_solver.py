"""What holds for every solver: dense algebra, zero cotangents, damping, reports."""

import pytest
import torch
from solver_table import ROWS
from toy import relative_error

from multilevel.solvers import SOLVERS, LowerLevel, SettingError, SolveError
from multilevel.solvers.products import PRODUCTS

every_row = pytest.mark.parametrize("row", ROWS, ids=str)
SIZE = 7


class Lower:
    """A convex lower loss with a dense Hessian of known spectrum, reading a level of 4 values; counts its calls."""

    def __init__(self, parts=1):
        generator = torch.Generator().manual_seed(0)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        basis = torch.linalg.qr(randn(SIZE, SIZE))[0]
        self.matrix = basis @ torch.linspace(0.5, 5, SIZE, dtype=torch.float64).diag() @ basis.T
        self.coupling = randn(SIZE, 4)
        self.point, self.upper, self.cotangent = randn(SIZE), randn(4), randn(SIZE)
        self.parts = parts
        self.calls = 0

    def loss(self, parameters, reads):
        self.calls += 1
        p = torch.cat([parameters["first"], parameters["second"].reshape(-1)])
        return p @ self.matrix @ p / 2 + (p.square() / 2) @ self.coupling @ reads["upper"]["value"].sin()

    def level(self):
        parameters = {"first": self.point[:3], "second": self.point[3:].reshape(2, 2)}
        return LowerLevel([self.loss] * self.parts, parameters, {"upper": {"value": self.upper}})

    def named(self, vector):
        return {"first": vector[:3], "second": vector[3:].reshape(2, 2)}

    def hessian(self):
        return self.matrix + (self.coupling @ self.upper.sin()).diag()

    def contribution(self, x):
        return -(x * self.point) @ self.coupling * self.upper.cos()


@pytest.fixture
def lower():
    lower = Lower()
    shift = torch.linalg.eigvalsh(lower.hessian())[0]
    lower.matrix = lower.matrix + (1 - shift) * torch.eye(SIZE, dtype=torch.float64)
    return lower


def test_every_solver_is_in_the_table():
    assert {row.name for row in ROWS} == set(SOLVERS)


@every_row
def test_contribution_is_that_of_dense_algebra(row, lower):
    response = row.solver().respond(lower.level(), lower.named(lower.cotangent))
    expected = lower.contribution(row.inverse(lower.hessian(), lower.cotangent))
    assert relative_error(response.contributions["upper"]["value"], expected) < row.tolerance


@every_row
def test_parts_of_a_batch_are_averaged(row, lower):
    once = row.solver().respond(lower.level(), lower.named(lower.cotangent))
    lower.parts = 3
    thrice = row.solver().respond(lower.level(), lower.named(lower.cotangent))
    error = relative_error(thrice.contributions["upper"]["value"], once.contributions["upper"]["value"])
    assert error < row.tolerance


@every_row
def test_damping_is_added_to_the_hessian(row, lower):
    response = row.solver(damping=0.7).respond(lower.level(), lower.named(lower.cotangent))
    damped = lower.hessian() + 0.7 * torch.eye(SIZE, dtype=torch.float64)
    expected = lower.contribution(row.inverse(damped, lower.cotangent))
    assert relative_error(response.contributions["upper"]["value"], expected) < row.tolerance


@every_row
def test_a_zero_cotangent_gives_zero(row, lower):
    response = row.solver().respond(lower.level(), lower.named(torch.zeros(SIZE, dtype=torch.float64)))
    assert torch.equal(response.contributions["upper"]["value"], torch.zeros(4, dtype=torch.float64))
    assert response.report.converged
    assert response.report.residual == 0
    assert lower.calls == 0


@every_row
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cotangent_that_is_not_finite_is_refused(row, lower, value):
    with pytest.raises(SolveError, match="not finite"):
        row.solver().respond(lower.level(), lower.named(torch.full((SIZE,), value, dtype=torch.float64)))


@every_row
def test_reported_residual_is_that_of_dense_algebra(row, lower):
    report = row.solver(damping=0.3).respond(lower.level(), lower.named(lower.cotangent)).report
    damped = lower.hessian() + 0.3 * torch.eye(SIZE, dtype=torch.float64)
    x = row.inverse(damped, lower.cotangent)
    expected = ((damped @ x - lower.cotangent).norm() / lower.cotangent.norm()).item()
    if report.residual is None:
        assert report.converged is None
    else:
        assert report.residual == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert report.converged == (expected < 1e-6)


@every_row
def test_reported_evaluations_are_the_calls_of_the_loss(row, lower):
    report = row.solver().respond(lower.level(), lower.named(lower.cotangent)).report
    assert report.evaluations == lower.calls
    assert report.products >= 1


@every_row
def test_inputs_are_not_written_to(row, lower):
    level, cotangent = lower.level(), lower.named(lower.cotangent)
    before = [value.clone() for value in (*level.parameters.values(), *cotangent.values(), lower.upper)]
    row.solver().respond(level, cotangent)
    after = (*level.parameters.values(), *cotangent.values(), lower.upper)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not any(value.requires_grad for value in after)


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize(
    ("option", "value"), [("product", "none"), ("damping", -1.0), ("radius", 0.0), ("damping", float("nan"))]
)
def test_settings_out_of_range_are_named(name, option, value):
    with pytest.raises(SettingError, match=rf"solver\.{option}: got .*; expected "):
        SOLVERS[name](**{option: value})


@pytest.mark.parametrize("product", list(PRODUCTS))
@pytest.mark.parametrize("name", ["neumann", "conjugate_gradient"])
def test_a_lower_level_of_float32(name, product, lower):
    level = LowerLevel(
        [lambda p, r: lower.loss({k: v.double() for k, v in p.items()}, r).float()],
        {key: value.float() for key, value in lower.level().parameters.items()},
        lower.level().reads,
    )
    named = {key: value.float() for key, value in lower.named(lower.cotangent).items()}
    options = {"terms": 300} if name == "neumann" else {"iterations": 30}
    response = SOLVERS[name](product=product, tolerance=1e-4, **options).respond(level, named)
    expected = lower.contribution(torch.linalg.solve(lower.hessian(), lower.cotangent))
    assert relative_error(response.contributions["upper"]["value"].double(), expected) < 1e-2
