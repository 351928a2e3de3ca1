"""Every way of forming products, on the layers that networks are made of, against float64 by another route."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from multilevel.solvers import ConjugateGradient, LowerLevel, Prediction, ProductError, SolveError
from multilevel.solvers.products import PRODUCTS
from multilevel.solvers.vectors import flatten, unflatten

TOLERANCE = {"reverse": 1e-6, "forward": 1e-6, "finite_difference": 1e-5}
every_product = pytest.mark.parametrize("product", list(PRODUCTS))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(6, 18)

    def forward(self, x):
        query, key, value = self.project(x.view(2, 3, 6)).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 6)

    def forward(self, x):
        return self.embedding(torch.tensor([0, 3, 3, 1])).sin() * x.view(-1, 6)[:4]


def seeded(layer):
    """Draws its dropout mask alike at every evaluation."""

    class Seeded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            torch.manual_seed(5)
            return self.layer(x)

    return Seeded()


LAYERS = {
    "attention": Attention,
    "multihead": lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, activation="gelu", batch_first=True),
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.SiLU(), nn.BatchNorm1d(3)),
    "group norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.GroupNorm(2, 6)),
    "rms norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6)),
    "instance norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2)),
    "batch norm at rest": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).eval(),
    "softmax": lambda: nn.Sequential(nn.Linear(6, 6), nn.LogSoftmax(1), nn.Linear(6, 6), nn.Softmax(1)),
    "embedding": Embedded,
    "dropout": lambda: seeded(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))),
}


def lower_of(layer, seed=0):
    torch.manual_seed(seed)
    module = LAYERS[layer]().double()
    x = torch.randn(6, 6, dtype=torch.float64)
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    upper = {"u": {"scale": torch.randn(6, dtype=torch.float64)}}

    def loss(values, reads):
        buffers = {name: one.clone() for name, one in module.named_buffers()}
        out = functional_call(module, {**dict(values), **buffers}, x * reads["u"]["scale"])
        return out.square().mean() + out.cos().mean()

    return LowerLevel([loss], parameters, upper, torch.float64)


def dense(lower, direction):
    """H v and the mixed product by differences of gradients with a small step, extrapolated (Richardson)."""
    parameters = lower.parameters

    def slope(scale):
        point = unflatten(flatten(parameters) + scale * direction, parameters)
        leaves = {name: one.clone().requires_grad_() for name, one in point.items()}
        reads = {"u": {"scale": lower.reads["u"]["scale"].clone().requires_grad_()}}
        inputs = [*leaves.values(), reads["u"]["scale"]]
        found = torch.autograd.grad(lower.losses[0](leaves, reads), inputs, materialize_grads=True)
        return torch.cat([one.reshape(-1) for one in found])

    def central(step):
        return (slope(step) - slope(-step)) / (2 * step)

    both = (4 * central(5e-4) - central(1e-3)) / 3
    return both[:-6], both[-6:]


@every_product
@pytest.mark.parametrize("layer", list(LAYERS))
def test_layers(layer, product):
    lower = lower_of(layer)
    direction = torch.randn(flatten(lower.parameters).numel(), dtype=torch.float64)
    products = PRODUCTS[product](lower)
    vector = unflatten(direction, lower.parameters)
    hessian, mixed = dense(lower, direction)
    assert ((flatten(products.hessian(vector)) - hessian).norm() / hessian.norm()).item() < TOLERANCE[product]
    assert ((products.mixed(vector)["u"]["scale"] - mixed).norm() / mixed.norm()).item() < TOLERANCE[product]


@pytest.mark.parametrize("layer", list(LAYERS))
def test_forward_and_reverse_agree(layer):
    lower = lower_of(layer)
    vector = unflatten(torch.randn(flatten(lower.parameters).numel(), dtype=torch.float64), lower.parameters)
    upper = {"u": {"scale": torch.randn(6, dtype=torch.float64)}}
    one, other = PRODUCTS["reverse"](lower), PRODUCTS["forward"](lower)
    torch.testing.assert_close(one.hessian(vector), other.hessian(vector), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.hessian(vector, upper), other.hessian(vector, upper), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.mixed(vector), other.mixed(vector), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.gradient(), other.gradient(), rtol=1e-12, atol=1e-14)


def test_forward_mode_sees_nothing_of_what_runs_without_gradients():
    def loss(values, reads):
        with torch.no_grad():
            weight = values["p"].exp() * 2
        return (weight * values["p"].detach() * values["p"] ** 3).sum() * reads["u"]["v"].sum()

    point = torch.tensor([0.5, -1.0], dtype=torch.float64)
    lower = LowerLevel([loss], {"p": point}, {"u": {"v": torch.ones(1, dtype=torch.float64)}})
    vector = {"p": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    found = PRODUCTS["forward"](lower).hessian(vector)["p"]
    torch.testing.assert_close(found, 2 * point.exp() * point * 6 * point * vector["p"])


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(context, slope):
        (x,) = context.saved_tensors
        return slope * x.exp()


LACKING = {
    "_cdist": lambda p: torch.cdist(p.view(2, 2), p.view(2, 2).flip(0) * 2),
    "grid_sampler_2d": lambda p: nn.functional.grid_sample(
        p.view(1, 1, 2, 2), torch.zeros(1, 2, 2, 2, dtype=p.dtype), align_corners=False
    ),
    "custom autograd.Function": Exponential.apply,
}


@pytest.mark.parametrize(("product", "operator"), [("forward", one) for one in LACKING] + [("reverse", "_cdist")])
def test_an_operator_without_the_derivative_is_named_and_the_product_that_works(product, operator):
    point = torch.tensor([0.3, 1.0, -0.4, 2.0], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    lower = LowerLevel(
        [lambda p, r: (LACKING[operator](p["p"]) ** 2).sum() * r["u"]["v"]], {"p": point}, {"u": {"v": one}}
    )
    remedy = "solver.product=finite_difference"
    for form in ("hessian", "mixed"):
        with pytest.raises(ProductError, match=rf"{operator}.* has no .* derivative.*{remedy}"):
            getattr(PRODUCTS[product](lower), form)({"p": point})
        assert torch.isfinite(flatten(PRODUCTS["finite_difference"](lower).hessian({"p": point}))).all()


def test_an_error_of_the_loss_itself_is_left_as_it_is():
    def loss(values, reads):
        return values["p"] @ torch.ones(3, dtype=torch.float64)

    lower = LowerLevel([loss], {"p": torch.ones(2, dtype=torch.float64)}, {})
    for product in ("reverse", "forward"):
        with pytest.raises(RuntimeError, match="size") as raised:
            PRODUCTS[product](lower).hessian({"p": torch.ones(2, dtype=torch.float64)})
        assert not isinstance(raised.value, SolveError)


def softmax_regression():
    torch.manual_seed(0)
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
    parameters = {
        "hidden": torch.randn(4, 5, dtype=torch.float64),
        "unused": torch.ones(2, dtype=torch.float64),
        "out": torch.randn(5, 3, dtype=torch.float64),
    }

    def outputs(values, reads):
        return [(x @ values["hidden"]).tanh() @ values["out"], values["out"].square().sum()]

    def criterion(found, reads):
        return nn.functional.cross_entropy(found[0], y) + found[1] * reads["u"]["decay"]

    upper = {"u": {"decay": torch.tensor(0.1, dtype=torch.float64)}}
    prediction = Prediction(outputs, criterion)
    return LowerLevel([lambda p, r: criterion(outputs(p, r), r)], parameters, upper, predictions=[prediction])


@every_product
def test_gauss_newton_is_that_of_dense_jacobians(product):
    lower = softmax_regression()
    vector = torch.randn(flatten(lower.parameters).numel(), dtype=torch.float64)
    found = flatten(PRODUCTS[product](lower).gauss_newton(unflatten(vector, lower.parameters)))

    def outputs(flat):
        logits, decay = lower.predictions[0].outputs(unflatten(flat, lower.parameters), lower.reads)
        return torch.cat([logits.reshape(-1), decay.reshape(1)])

    def criterion(z):
        return lower.predictions[0].criterion([z[:-1].view(12, 3), z[-1]], lower.reads)

    flat = flatten(lower.parameters)
    jacobian = torch.func.jacrev(outputs)(flat)
    curvature = torch.func.hessian(criterion)(outputs(flat))
    expected = jacobian.T @ curvature @ jacobian @ vector
    assert ((found - expected).norm() / expected.norm()).item() < TOLERANCE[product]


def test_gauss_newton_does_not_meet_negative_curvature():
    lower = softmax_regression()
    cotangent = unflatten(torch.randn(flatten(lower.parameters).numel(), dtype=torch.float64), lower.parameters)
    hessian = ConjugateGradient(iterations=200, damping=1e-3).respond(lower, cotangent).report
    safe = ConjugateGradient(iterations=200, damping=1e-3, curvature="gauss_newton").respond(lower, cotangent).report
    assert hessian.failed
    assert "curvature" in hessian.cause
    assert safe.converged


def test_gauss_newton_of_a_level_that_does_not_say_its_outputs_is_an_error():
    lower = lower_of("layer norm")
    with pytest.raises(SolveError, match="outputs and criterion"):
        ConjugateGradient(curvature="gauss_newton").respond(lower, lower.parameters)
