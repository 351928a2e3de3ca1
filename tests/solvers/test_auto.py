"""The rule by which ``solver=auto`` chooses: each branch, at its limits, and that the choice is what answers."""

import pytest
import torch

from multilevel.solvers import ConjugateGradient, Dense, Identity, LowerLevel, Prediction, Sama
from multilevel.solvers.auto import Auto
from multilevel.solvers.update_rules import UpdateRule

DOUBLE = {"dtype": torch.float64}


def criterion(outputs, reads):
    return (outputs[0] - reads["upper"]["value"]).square().sum() + outputs[0].exp().sum()


def outputs(parameters, reads):
    return [parameters["p"] * 1.5]


def level(size, declares=False, rule=None):
    generator = torch.Generator().manual_seed(0)
    p, upper = torch.randn(size, generator=generator, **DOUBLE), torch.randn(size, generator=generator, **DOUBLE)
    predictions = [Prediction(outputs, criterion)] if declares else None
    losses = [lambda parameters, reads: criterion(outputs(parameters, reads), reads)]
    return LowerLevel(losses, {"p": p}, {"upper": {"value": upper}}, torch.float64, predictions=predictions, rule=rule)


def rule_of(optimizer, size=201):
    variable = torch.nn.Parameter(torch.zeros(size, **DOUBLE))
    return UpdateRule.of(optimizer([variable], 0.1), {"p": variable})


def adam(size):
    return rule_of(torch.optim.Adam, size)


GAUSS_NEWTON = ConjugateGradient(curvature="gauss_newton", damping=0.01, warm_start=True)


@pytest.mark.parametrize(
    ("lower", "chosen", "why"),
    [
        (level(200, declares=True, rule=adam(200)), Dense(), "dense: 200 parameters, at most 200"),
        (
            level(201, declares=True, rule=adam(201)),
            GAUSS_NEWTON,
            "conjugate_gradient with Gauss-Newton curvature: 201",
        ),
        (level(20_000, declares=True), GAUSS_NEWTON, "20,000 parameters, at most 20,000"),
        (level(20_001, declares=True, rule=adam(20_001)), Sama(), "sama: 20,001 parameters, trained with adam"),
        (level(201, rule=adam(201)), Sama(), "sama: 201 parameters"),
        (level(201, rule=rule_of(torch.optim.AdamW)), Sama(), "sama: 201 parameters, trained with adamw"),
        (
            level(201, rule=rule_of(torch.optim.SGD)),
            Identity(),
            "identity: 201 parameters, not trained with Adam",
        ),
        (level(201), Identity(), "identity: 201 parameters"),
    ],
)
def test_the_first_rule_that_matches_chooses_and_answers(lower, chosen, why):
    cotangent = {"p": torch.randn(lower.parameters["p"].shape, generator=torch.Generator().manual_seed(1), **DOUBLE)}
    found, expected = Auto().respond(lower, cotangent), chosen.respond(lower, cotangent)
    assert why in found.report.choice
    torch.testing.assert_close(found.contributions, expected.contributions, rtol=0, atol=0)


def test_damping_and_product_are_those_of_the_solver_taken():
    assert Auto(damping=2.0, product="forward").resolved(level(5))[0] == Dense(damping=2.0, product="forward")
    taken = Auto(damping=2.0, product="forward").resolved(level(201, declares=True))[0]
    assert taken == ConjugateGradient(curvature="gauss_newton", damping=2.0, warm_start=True, product="forward")
