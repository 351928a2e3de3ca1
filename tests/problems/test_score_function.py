"""The score-function estimate against its closed form."""

import choices
import pytest
import torch
from toy import flat, relative_error

from multilevel import Engine, score_function
from multilevel.solvers import ConjugateGradient, Identity, SettingError

LOSSES = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
LOGARITHMS = torch.tensor([-3.0, -700.0, 0.0, -1e4], dtype=torch.float64)


def total(losses):
    return lambda log_probabilities: score_function(losses, log_probabilities).sum()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_values_stay_and_derivatives_are_those_of_the_centred_logarithms(count):
    losses, point = LOSSES[:count], LOGARITHMS[:count]
    assert torch.equal(score_function(losses, point), losses)
    centring = torch.eye(count, dtype=torch.float64)  # each minus the mean of the others
    if count > 1:
        centring = (count * centring - 1) / (count - 1)
    first, second = centring.T @ losses, centring.T @ torch.diag(losses) @ centring
    tangent = torch.arange(1.0, count + 1, dtype=torch.float64)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(torch.func.grad(total(losses))(point), first, **close)
    torch.testing.assert_close(torch.func.jvp(total(losses), (point,), (tangent,))[1], first @ tangent, **close)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(total(losses)))(point), second, **close)
    torch.testing.assert_close(torch.func.jacfwd(torch.func.jacrev(total(losses)))(point), second, **close)


def test_draws_of_the_same_input_are_each_others_baseline():
    """Draws i and i + 2 are of the same input."""
    slope = torch.func.grad(lambda point: score_function(LOSSES, point, draws=2).sum())(LOGARITHMS)
    pairs = torch.tensor([[1, 0, -1, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, -1, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(slope, pairs @ LOSSES, rtol=1e-12, atol=1e-12)
    each = torch.func.grad(lambda point: score_function(LOSSES, point, draws=4).sum())(LOGARITHMS)
    torch.testing.assert_close(each, torch.func.grad(total(LOSSES))(LOGARITHMS), rtol=1e-12, atol=1e-12)
    with pytest.raises(SettingError, match="draws: got 3; expected a divisor of the number of losses, 4"):
        score_function(LOSSES, LOGARITHMS, draws=3)


def test_a_probability_that_underflows_leaves_the_values():
    point = torch.tensor([-torch.inf, -1.0, -2.0, -3.0], dtype=torch.float64)
    assert torch.equal(score_function(LOSSES, point), LOSSES)
    assert torch.func.grad(total(LOSSES))(point).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    losses, point = LOSSES.to(dtype), torch.tensor([-6e4, -6e4, -1.0, -6e4], dtype=dtype)  # their sum overflows float16
    with torch.autocast("cpu", dtype=dtype):
        values = score_function(losses, point)
        slope = torch.func.grad(total(losses))(point)
    assert values.dtype == torch.float32
    assert torch.equal(values, losses.float())
    expected = LOSSES - (LOSSES.sum() - LOSSES) / 3
    torch.testing.assert_close(slope.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    ("losses", "log_probabilities", "message"),
    [
        ((), (), r"losses: got \[\]; expected the shape \[B\], one loss per example"),
        ((3, 1), (3,), r"losses: got \[3, 1\]; expected the shape \[B\]"),
        ((3,), (3, 1), r"log_probabilities: got \[3, 1\]; expected the shape of losses, \[3\]"),
        ((3,), (), r"log_probabilities: got \[\]; expected the shape of losses, \[3\]"),
        ((1,), (3,), r"log_probabilities: got \[3\]; expected the shape of losses, \[1\]"),
    ],
)
def test_other_shapes_are_named(losses, log_probabilities, message):
    with pytest.raises(SettingError, match=message):
        score_function(torch.zeros(losses), torch.zeros(log_probabilities))


SOLVERS = {
    **{product: (Identity(product=product), False, 1e-10) for product in ("reverse", "forward")},
    "finite_difference": (Identity(product="finite_difference"), False, 1e-5),
    "gauss_newton": (ConjugateGradient(curvature="gauss_newton", iterations=10, tolerance=1e-12), True, 1e-9),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_hypergradients_are_those_by_hand(name):
    solver, exact, tolerance = SOLVERS[name]
    hypergradient = flat(Engine(choices.graph_of(solver)).hypergradient("shift"))
    expected = choices.hypergradient_by_hand(1, exact)
    assert expected.norm() > 0.01
    assert relative_error(hypergradient, expected) < tolerance
