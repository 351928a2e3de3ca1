"""What holds for every solver: dense algebra, zero cotangents, damping, reports."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from solver_table import ROWS, dense_hessian, mixed
from toy import Past, flat, relative_error

from multilevel.solvers import SOLVERS, LowerLevel, SettingError, SolveError, Step
from multilevel.solvers.products import PRODUCTS
from multilevel.solvers.update_rules import UpdateRule

every_row = pytest.mark.parametrize("row", ROWS, ids=str)
SIZE = 7


class Lower:
    """A convex lower loss with a dense Hessian of known spectrum, reading a level of 4 values; counts its calls.

    It has been trained by Adam for a few updates, which are recorded.
    """

    def __init__(self, parts=1, updates=3):
        generator = torch.Generator().manual_seed(0)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        basis = torch.linalg.qr(randn(SIZE, SIZE))[0]
        self.matrix = basis @ torch.linspace(3, 8, SIZE, dtype=torch.float64).diag() @ basis.T
        self.coupling = randn(SIZE, 4) / 3
        start, self.upper, self.cotangent = randn(SIZE), randn(4), randn(SIZE)
        self.parts = parts
        self.calls = 0
        self.variables = {key: torch.nn.Parameter(value) for key, value in self.named(start).items()}
        self.optimizer = torch.optim.Adam(self.variables.values(), 0.05)
        self.steps = [self.update() for _ in range(updates)]
        self.point = flat(self.variables).detach()

    def update(self):
        rule = UpdateRule.of(self.optimizer, self.variables).recorded(set(self.variables))
        before = {key: value.detach().clone() for key, value in self.variables.items()}
        self.optimizer.zero_grad()
        self.loss(self.variables, {"upper": {"value": self.upper}}).backward()
        self.optimizer.step()
        return Step([self.loss], before, {"upper": {"value": self.upper}}, rule)

    def loss(self, parameters, reads):
        self.calls += 1
        return self.function({"lower": flat(parameters), "upper": reads["upper"]["value"]})

    def function(self, values):
        p = values["lower"]
        return p @ self.matrix @ p / 2 + (p.square() / 2) @ self.coupling @ values["upper"].sin()

    def level(self, row=None):
        count = row.solver().recorded_steps if row else 0
        steps = [Step(step.losses * self.parts, step.parameters, step.reads, step.rule) for step in self.steps[-count:]]
        self.calls = 0
        return LowerLevel(
            [self.loss] * self.parts,
            {key: value.detach() for key, value in self.variables.items()},
            {"upper": {"value": self.upper}},
            rule=UpdateRule.of(self.optimizer, self.variables),
            steps=steps if count else [],
        )

    def named(self, vector):
        return {"first": vector[:3], "second": vector[3:].reshape(2, 2)}

    def past(self, row):
        """What the table's definitions take."""
        engine = SimpleNamespace(
            graph=SimpleNamespace(
                problems={"lower": SimpleNamespace(variables=lambda: self.variables, optimizer=self.optimizer)}
            ),
            histories={
                "lower": SimpleNamespace(updates=[SimpleNamespace(step=step) for step in self.level(row).steps])
            },
        )
        return Past(engine, "lower")

    def expected(self, row, **options):
        values = {"lower": self.point, "upper": self.upper}
        return row.contribution(self.function, "lower", values, self.cotangent, self.past(row), **options)["upper"]

    def hessian(self):
        return dense_hessian(self.function, "lower", {"lower": self.point, "upper": self.upper})


@pytest.fixture
def lower():
    return Lower()


def test_every_solver_is_in_the_table():
    assert {row.name for row in ROWS} == set(SOLVERS)


@every_row
def test_contribution_is_that_of_dense_algebra(row, lower):
    response = row.solver().respond(lower.level(row), lower.named(lower.cotangent))
    assert relative_error(response.contributions["upper"]["value"], lower.expected(row)) < row.tolerance


@every_row
def test_parts_of_a_batch_are_averaged(row, lower):
    once = row.solver().respond(lower.level(row), lower.named(lower.cotangent))
    lower.parts = 3
    thrice = row.solver().respond(lower.level(row), lower.named(lower.cotangent))
    error = relative_error(thrice.contributions["upper"]["value"], once.contributions["upper"]["value"])
    assert error < row.tolerance


@pytest.mark.parametrize("row", [row for row in ROWS if hasattr(row.solver(), "damping")], ids=str)
def test_damping_is_added_to_the_hessian(row, lower):
    response = row.solver(damping=0.7).respond(lower.level(row), lower.named(lower.cotangent))
    assert relative_error(response.contributions["upper"]["value"], lower.expected(row, damping=0.7)) < row.tolerance


@every_row
def test_a_zero_cotangent_gives_zero(row, lower):
    response = row.solver().respond(lower.level(row), lower.named(torch.zeros(SIZE, dtype=torch.float64)))
    assert torch.equal(response.contributions["upper"]["value"], torch.zeros(4, dtype=torch.float64))
    assert response.report.converged
    assert response.report.residual == 0
    assert lower.calls == 0


@every_row
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cotangent_that_is_not_finite_is_refused(row, lower, value):
    with pytest.raises(SolveError, match="not finite"):
        row.solver().respond(lower.level(row), lower.named(torch.full((SIZE,), value, dtype=torch.float64)))


@pytest.mark.parametrize("row", [row for row in ROWS if row.implicit], ids=str)
def test_reported_residual_is_that_of_dense_algebra(row, lower):
    """The solution is seen through a mixed derivative that is minus the identity."""
    level = lower.level(row)
    matrix = lower.hessian()

    def loss(parameters, reads):
        return lower.loss(parameters, {"upper": {"value": lower.upper}}) - flat(parameters) @ reads["upper"]["value"]

    seen = replace(level, losses=[loss], reads={"upper": {"value": torch.zeros(SIZE, dtype=torch.float64)}})
    response = row.solver(damping=0.3).respond(seen, lower.named(lower.cotangent))
    x, damped = response.contributions["upper"]["value"], matrix + 0.3 * torch.eye(SIZE, dtype=torch.float64)
    expected = ((damped @ x - lower.cotangent).norm() / lower.cotangent.norm()).item()
    report = response.report
    if report.residual is None:
        assert report.converged is None
    else:
        assert report.residual == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert report.converged == (report.residual <= 1e-5)


@every_row
def test_reported_evaluations_are_the_calls_of_the_loss(row, lower):
    level = lower.level(row)
    report = row.solver().respond(level, lower.named(lower.cotangent)).report
    assert report.evaluations == lower.calls
    assert report.products >= 1 or row.name == "first_order"


@every_row
def test_inputs_are_not_written_to(row, lower):
    level, cotangent = lower.level(row), lower.named(lower.cotangent)
    before = [value.clone() for value in (*level.parameters.values(), *cotangent.values(), lower.upper)]
    row.solver().respond(level, cotangent)
    after = (*level.parameters.values(), *cotangent.values(), lower.upper)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not any(value.requires_grad for value in after)


OUT_OF_RANGE = {
    "product": ["none"],
    "damping": [-1.0, float("nan")],
    "radius": [0.0],
    "terms": [0],
    "steps": [0],
    "outer_steps": [0],
    "iterations": [0],
    "power_iterations": [0],
    "rank": [0],
    "limit": [0],
    "tolerance": [-1.0],
    "step_size": [0.0],
    "penalty": [-1.0],
    "scale": [0.0],
    "curvature": ["none"],
}
SETTINGS = [
    (name, field.name, value)
    for name, solver in SOLVERS.items()
    for field in fields(solver)
    for value in OUT_OF_RANGE.get(field.name, [])
]


@pytest.mark.parametrize(("name", "option", "value"), SETTINGS)
def test_settings_out_of_range_are_named(name, option, value):
    with pytest.raises(SettingError, match=rf"solver\.{option}: got .*; expected "):
        SOLVERS[name](**{option: value})


def test_every_setting_that_has_a_range_is_tried():
    free = {"strict", "seed", "measure_residual", "warm_start"}
    assert {field.name for solver in SOLVERS.values() for field in fields(solver)} == free | set(OUT_OF_RANGE)


@pytest.mark.parametrize("product", list(PRODUCTS))
@pytest.mark.parametrize("name", ["neumann", "conjugate_gradient", "minres"])
def test_a_lower_level_of_float32(name, product, lower):
    level = LowerLevel(
        [lambda p, r: lower.loss({k: v.double() for k, v in p.items()}, r).float()],
        {key: value.float() for key, value in lower.level().parameters.items()},
        lower.level().reads,
    )
    named = {key: value.float() for key, value in lower.named(lower.cotangent).items()}
    options = {"terms": 300} if name == "neumann" else {"iterations": 30}
    response = SOLVERS[name](product=product, tolerance=1e-4, **options).respond(level, named)
    values = {"lower": lower.point, "upper": lower.upper}
    expected = mixed(lower.function, "lower", values, torch.linalg.solve(lower.hessian(), lower.cotangent))["upper"]
    assert relative_error(response.contributions["upper"]["value"].double(), expected) < 1e-2
