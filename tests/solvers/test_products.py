"""Every way of forming products, on the layers that networks are made of, against float64 by another route."""

import pytest
import torch
import wrong_derivatives
from torch import nn
from torch.func import functional_call

from multilevel.solvers import ConjugateGradient, LowerLevel, Prediction, ProductError, SolveError
from multilevel.solvers.products import PRODUCTS
from multilevel.solvers.products.base import lacking_operator
from multilevel.solvers.products.forward import FOLLOWED
from multilevel.solvers.vectors import flatten, unflatten

TOLERANCE = {"auto": 1e-6, "reverse": 1e-6, "forward": 1e-6, "finite_difference": 1e-5}
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
    "layer norm first": lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)),
    "batch norm first": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)),
    "gated linear unit": lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU()),
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


F = nn.functional
INDEX = torch.tensor([0, 3, 3, 1])
MEETING = {  # (a, b) [4, 4], either of which may be the one with the tangent and the other the one with the gradient
    "radd": lambda a, b: 1 + a * b,
    "rsub": lambda a, b: 1 - a * b,
    "rmul": lambda a, b: 2 * (a * b),
    "rdiv": lambda a, b: 2 / (a * b + 9),
    "truediv": lambda a, b: a / (b.square() + 1),
    "rtruediv": lambda a, b: 2 / (a * b + 9),
    "pow": lambda a, b: (a * b) ** 3,
    "rpow": lambda a, b: 2 ** (a * b),
    "sqrt": lambda a, b: (a.square() + b.square()).sqrt(),
    "rsqrt": lambda a, b: (a.square() + b.square()).rsqrt(),
    "log": lambda a, b: (a.square() + b.square()).log(),
    "log1p": lambda a, b: (a.square() + b.square()).log1p(),
    "reciprocal": lambda a, b: (a * b + 9).reciprocal(),
    "rmatmul": lambda a, b: a.__rmatmul__(b),
    "mm": torch.mm,
    "bmm": lambda a, b: torch.bmm(a[None], b[None]),
    "mv": lambda a, b: torch.mv(a, b[0]),
    "dot": lambda a, b: torch.dot(a[0], b[0]),
    "linear": lambda a, b: F.linear(a, b, a[0]),
    "conv1d": lambda a, b: F.conv1d(a[None], b[:, :, None], b[0]),
    "conv2d": lambda a, b: F.conv2d(a[None, None], b[None, None, :2, :2]),
    "embedding": lambda a, b: F.embedding(INDEX, a * b),
    "dropout": lambda a, b: (torch.manual_seed(0), F.dropout(a * b, 0.4))[1],
    "log_sigmoid": lambda a, b: F.logsigmoid(a * b),
    "logsumexp": lambda a, b: torch.logsumexp(a * b, 1),
    "mse_loss": lambda a, b: F.mse_loss(a, b),
    "nll_loss": lambda a, b: F.nll_loss(a * b, INDEX),
    "cross_entropy": lambda a, b: F.cross_entropy(a * b, INDEX),
    "binary_cross_entropy_with_logits": lambda a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid()),
    "softmax": lambda a, b: (a * b).softmax(1),
    "log_softmax": lambda a, b: (a * b).log_softmax(1),
    "scaled_dot_product_attention": lambda a, b: F.scaled_dot_product_attention(a[None], b[None], a[None]),
    "multi_head_attention_forward": lambda a, b: F.multi_head_attention_forward(
        a[:, None], b[:, None], a[:, None], 4, 2, torch.cat([a, b, a]), None, None, None, False, 0.0, b, None
    )[0],
    "get": lambda a, b: (a * b).mT,
    "getitem": lambda a, b: (a * b)[1:],
    "view": lambda a, b: (a * b).view(2, 8),
    "view_as": lambda a, b: (a * b).view_as(a),
    "reshape": lambda a, b: (a * b).reshape(2, 8),
    "unflatten": lambda a, b: (a * b).unflatten(1, (2, 2)),
    "transpose": lambda a, b: (a * b).transpose(0, 1),
    "permute": lambda a, b: (a * b).permute(1, 0),
    "unsqueeze": lambda a, b: (a * b).unsqueeze(1),
    "expand": lambda a, b: (a * b)[:1].expand(4, 4),
    "expand_as": lambda a, b: (a * b)[:1].expand_as(a),
    "repeat": lambda a, b: (a * b).repeat(2, 1),
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
    "chunk": lambda a, b: (a * b).chunk(2)[0],
    "split": lambda a, b: (a * b).split(1)[0],
    "unbind": lambda a, b: (a * b).unbind(1)[0],
    "gather": lambda a, b: (a * b).gather(1, INDEX[:, None]),
    "index_select": lambda a, b: (a * b).index_select(0, INDEX),
    "where": lambda a, b: torch.where(INDEX > 1, a, b),
    "flip": lambda a, b: (a * b).flip(0),
    "to": lambda a, b: (a * b).to(torch.float64),
    "detach": lambda a, b: a * b + (a * b).detach(),
}
ONE_OPERAND = set("neg square exp sigmoid tanh sin cos abs relu silu t squeeze flatten contiguous clone".split())
ONE_OPERAND |= set("float double sum mean gelu softplus leaky_relu elu".split())
TWO_OPERANDS = set("add sub mul div matmul".split())


@pytest.mark.parametrize("name", sorted(FOLLOWED))
def test_a_reverse_pass_follows_the_tangent(name):
    if name in TWO_OPERANDS:
        function = getattr(torch, name)
    elif name in ONE_OPERAND:
        one = getattr(torch.Tensor, name, None) or getattr(F, name)
        function = lambda a, b: one(a * b)  # noqa: E731
    else:
        function = MEETING[name]
    generator = torch.Generator().manual_seed(0)
    first, second, vector = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    for swapped in (False, True):

        def loss(values, reads, swapped=swapped):
            a, b = values["p"] * 1.0, reads["u"]["r"] * 1.0
            out = function(b, a) if swapped else function(a, b)
            weights = torch.linspace(1, 2, out.numel(), dtype=torch.float64).view(out.shape)
            return (out * weights).sum() + out.double().square().sum()

        lower = LowerLevel([loss], {"p": first}, {"u": {"r": second}}, torch.float64)
        expected = PRODUCTS["reverse"](lower).mixed({"p": vector})["u"]["r"]
        found = PRODUCTS["forward"](lower)._reverse({"p": vector})["u"]["r"]
        tolerance = 1e-6 if name == "float" else 1e-11
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda p: p.data, lambda p: torch.tensor(p.tolist()).to(p)])
def test_forward_mode_sees_nothing_of_what_runs_without_gradients(cut):
    def loss(values, reads):
        with torch.no_grad():
            weight = values["p"].exp() * 2
        return (weight * cut(values["p"]) * values["p"] ** 3).sum() * reads["u"]["v"].sum()

    point = torch.tensor([0.5, -1.0], dtype=torch.float64)
    lower = LowerLevel([loss], {"p": point}, {"u": {"v": torch.ones(1, dtype=torch.float64)}})
    vector = {"p": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    found = PRODUCTS["forward"](lower).hessian(vector)["p"]
    torch.testing.assert_close(found, 2 * point.exp() * point * 6 * point * vector["p"])


class ExponentialBackward(torch.autograd.Function):
    """Says that it has no derivative as torch's own backward functions do."""

    @staticmethod
    def forward(context, slope, x):
        return slope * x.exp()

    @staticmethod
    def backward(context, slope):
        raise NotImplementedError("derivative for aten::exponential_backward is not implemented")


class Exponential(wrong_derivatives.Exponential):
    """Has a first derivative in reverse mode, and no other."""

    @staticmethod
    def backward(context, slope):
        return ExponentialBackward.apply(slope, *context.saved_tensors)


@pytest.mark.parametrize("form", ["hessian", "mixed"])
@pytest.mark.parametrize(
    ("product", "lack"),
    [
        ("forward", "the autograd.Function Exponential has no forward derivative"),
        ("reverse", "operator exponential_backward has no second derivative"),
    ],
)
def test_a_function_without_the_derivative_is_named_and_the_product_that_works(product, lack, form):
    point = torch.tensor([0.3, 1.0, -0.4, 2.0], dtype=torch.float64)
    lower = LowerLevel(
        [lambda p, r: (Exponential.apply(p["p"]) * r["u"]["v"]).sum()], {"p": point}, {"u": {"v": point.cos()}}
    )
    with pytest.raises(ProductError, match=rf"{lack}: .*solver\.product=finite_difference"):
        getattr(PRODUCTS[product](lower), form)({"p": point})
    works = PRODUCTS["finite_difference"](lower)
    torch.testing.assert_close(works.hessian({"p": point})["p"], point.exp() * point.cos() * point, rtol=1e-3, atol=0)
    torch.testing.assert_close(works.mixed({"p": point})["u"]["v"], point.exp() * point, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("message", "operator"),
    [
        ("Trying to use forward AD with grid_sampler_2d that does not support it because", "operator grid_sampler_2d"),
        ("derivative for aten::_cdist_backward is not implemented", "operator _cdist_backward"),
        ("the derivative for 'target' is not implemented", "operator target"),
        ("size mismatch, got input (2), mat (2x3)", None),
    ],
)
def test_the_operator_is_read_from_what_torch_says(message, operator):
    """Whichever operators lack one: torch's next version has derivatives that this one has not."""
    assert lacking_operator(RuntimeError(message)) == operator


def unlike_parts():
    """A level whose batch has two parts with losses that are not alike, and their mean as a function of vectors."""
    generator = torch.Generator().manual_seed(0)
    x, p, u, v, w = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    criteria = [
        lambda z, r: (z.exp() * r.cos()).sum(),
        lambda z, r: (z**4).sum() / 4 * r.square().sum(),
    ]
    scales = [x, 2 - x]
    losses, predictions = [], []
    for criterion, scale in zip(criteria, scales, strict=True):
        losses.append(lambda a, r, c=criterion, s=scale: c(a["p"] * s, r["u"]["r"]))
        predictions.append(
            Prediction(
                lambda a, r, s=scale: [a["p"] * s],
                lambda z, r, c=criterion: c(z[0], r["u"]["r"]),
            )
        )

    def mean(p, u):
        return sum(criterion(p * scale, u) for criterion, scale in zip(criteria, scales, strict=True)) / 2

    return LowerLevel(losses, {"p": p}, {"u": {"r": u}}, torch.float64, predictions=predictions), mean, v, w


@every_product
def test_products_are_of_the_mean_over_parts_that_are_not_alike(product):
    lower, mean, v, w = unlike_parts()
    point = (lower.parameters["p"], lower.reads["u"]["r"])
    (own, across), _ = torch.func.hessian(mean, (0, 1))(*point)
    products, tolerance = PRODUCTS[product](lower), {"rtol": TOLERANCE[product], "atol": TOLERANCE[product]}
    torch.testing.assert_close(products.gradient()["p"], torch.func.grad(mean)(*point))
    torch.testing.assert_close(products.hessian({"p": v})["p"], own @ v, **tolerance)
    torch.testing.assert_close(products.hessian({"p": v}, {"u": {"r": w}})["p"], own @ v + across @ w, **tolerance)
    torch.testing.assert_close(products.mixed({"p": v})["u"]["r"], across.T @ v, **tolerance)
    # Outputs linear in the parameters: the Gauss-Newton matrix is the Hessian.
    torch.testing.assert_close(products.gauss_newton({"p": v})["p"], own @ v, **tolerance)


def test_an_error_of_the_loss_itself_is_left_as_it_is():
    def loss(values, reads):
        return values["p"] @ torch.ones(3, dtype=torch.float64)

    lower = LowerLevel([loss], {"p": torch.ones(2, dtype=torch.float64)}, {})
    for product in PRODUCTS:
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
