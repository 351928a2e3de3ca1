"""Normalizations in levels that read each other: third derivatives, which torch's own do not have."""

import pytest
import torch
import torch.nn.functional as F
from toy import relative_error, toy_graph

from multilevel import Engine
from multilevel.problems.evaluation.normalization import ElementaryNormalization
from multilevel.solvers import Dense, ProductError

DOUBLE = {"dtype": torch.float64}
generator = torch.Generator().manual_seed(5)


def randn(*shape):
    return torch.randn(*shape, generator=generator, **DOUBLE)


SCALE, SHIFT, MEAN, VARIANCE = randn(4), randn(4), randn(4), randn(4).square() + 1
X = randn(5, 4)
OPERATORS = {
    "layer": lambda x: F.layer_norm(x, (4,)),
    "layer, affine": lambda x: F.layer_norm(x, (4,), SCALE, SHIFT, 1e-3),
    "layer, two dimensions": lambda x: F.layer_norm(x, x.shape),
    "module": lambda x: torch.nn.LayerNorm(4, **DOUBLE)(x),
    "batch": lambda x: F.batch_norm(x, None, None, training=True),
    "batch, affine": lambda x: F.batch_norm(x.T[None], MEAN[:4], VARIANCE, SCALE, SHIFT, training=True),
    "batch, running statistics": lambda x: F.batch_norm(x, MEAN, VARIANCE, SCALE, SHIFT),
    "instance": lambda x: F.instance_norm(x.T[None]),
    "instance, two samples": lambda x: F.instance_norm(torch.stack([x.T, x.T.square()])),
    "instance, affine": lambda x: F.instance_norm(x.T[None], None, None, SCALE, SHIFT),
    "instance, running statistics": lambda x: F.instance_norm(x.T[None], MEAN, VARIANCE, use_input_stats=False),
    "group": lambda x: F.group_norm(x, 2),
    "root mean square": lambda x: F.rms_norm(x, (4,)),
}


def directional(operator, order, mode):
    """The derivative of a scalar of the operator's result along directions, by repeated reverse or forward mode."""

    def function(x):
        values = operator(x).sin()
        return (values * torch.arange(values.numel(), **DOUBLE).reshape(values.shape)).sum()

    directions = torch.randn(order, *X.shape, generator=torch.Generator().manual_seed(7), **DOUBLE)
    for direction in directions:
        if mode == "forward":
            function = (lambda inner, v: lambda x: torch.func.jvp(inner, (x,), (v,))[1])(function, direction)
        else:
            function = (lambda inner, v: lambda x: (torch.func.grad(inner)(x) * v).sum())(function, direction)
    return function


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_third_derivatives_are_those_of_differences(operator, mode):
    step, along = 1e-5, torch.randn(*X.shape, generator=torch.Generator().manual_seed(9), **DOUBLE)
    with ElementaryNormalization():
        second = directional(operator, 2, "reverse")
        expected = (second(X + step * along) - second(X - step * along)) / (2 * step)
        if mode == "forward":
            found = torch.func.jvp(directional(operator, 2, mode), (X,), (along,))[1]
        else:
            found = (torch.func.grad(second)(X) * along).sum()
    assert abs(found - expected) < 1e-6 * abs(expected) + 1e-7


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_values_are_those_of_torch(operator):
    with ElementaryNormalization():
        found = operator(X)
    torch.testing.assert_close(found, operator(X), rtol=1e-12, atol=1e-12)


def test_coarse_inputs_are_normalized_in_single_precision():
    """Their mean, 100 deviations from 0, is not rounded to bfloat16: one rounding is left, that of the result."""
    coarse = (randn(5, 64) + 100).bfloat16()
    with ElementaryNormalization():
        found = F.layer_norm(coarse, (64,))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), F.layer_norm(coarse.double(), (64,)), rtol=2**-8, atol=1e-4)


def by_hand(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def chain(normalize):
    """q reads r and r reads q, with a normalization in both."""
    weights = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(11), **DOUBLE)
    functions = {
        "q": lambda v: 2 * v["q"].square().sum() + normalize(weights[0] @ v["q"] + weights[1] @ v["r"]).cos().sum() / 9,
        "r": lambda v: 2 * v["r"].square().sum() + normalize(weights[2] @ v["r"] + v["u"]).sin().sum() / 9
        + v["q"] @ v["r"] / 3,
        "u": lambda v: (v["r"] - 1).square().sum() + v["q"].square().sum() + v["u"].square().sum(),
    }  # fmt: skip
    values = dict(zip("qru", torch.randn(3, 4, generator=torch.Generator().manual_seed(13), **DOUBLE), strict=True))
    return functions, {"q": values["q"][:3], "r": values["r"][:3], "u": values["u"]}


@pytest.mark.parametrize("product", ["reverse", "forward"])
def test_a_nested_hypergradient_is_that_of_the_normalization_written_by_hand(product):
    found = []
    for normalize in (lambda x: F.layer_norm(x, (4,)), by_hand):
        functions, values = chain(normalize)
        solvers = {"q": Dense(product=product), "r": Dense(product=product)}
        engine = Engine(toy_graph(functions, values, solvers))
        assert set(engine.graph.passes("u")) == {"q", "r"}
        found.append(engine.hypergradient("u")["value"])
    assert relative_error(*found) < 1e-12


def test_an_operator_that_cannot_be_replaced_is_named():
    functions, values = chain(lambda x: torch.layer_norm(x, (4,)))
    engine = Engine(toy_graph(functions, values, {"q": Dense(), "r": Dense()}))
    with pytest.raises(ProductError, match=r"torch\.layer_norm .* call torch\.nn\.functional\.layer_norm"):
        engine.hypergradient("u")
