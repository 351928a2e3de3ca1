"""Rematerialized layers: the derivatives of plain ones in every mode, with less kept."""

import copy
import random
import weakref
from functools import cache

import numpy as np
import pytest
import torch
from solver_table import ROWS, Row
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from multilevel import Engine, Graph, Problem
from multilevel.compare.memory import MemoryTracker
from multilevel.problems.evaluation.randomness import ReplayableDropout
from multilevel.problems.evaluation.rematerialization import rematerialize, rematerialized
from multilevel.solvers import ConjugateGradient, FiniteDifference, Identity
from multilevel.solvers.vectors import flatten

DOUBLE = {"dtype": torch.float64}
SIDES = [False, True]


class Block(nn.Module):
    """Attention and a feed-forward part of width ``inner``, both with dropout; a factor without gradient if ``cut``."""

    def __init__(self, width=4, dropout=0.2, inner=6, norm=True, cut=False):
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.forth, self.back = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.dropout = dropout
        self.cut = cut

    def forward(self, x):
        if self.cut:
            with torch.no_grad():
                factor = 1 + self.forth.weight.sin().mean() + x.mean()
            x = x * factor
        parts = self.project(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*parts, dropout_p=self.dropout)
        x = x + attended.transpose(1, 2).flatten(2)
        return x + nn.functional.dropout(self.back(nn.functional.gelu(self.forth(x))), self.dropout)


class Network(nn.Module):
    def __init__(self, rematerialize_blocks, depth=1, **options):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.blocks = nn.Sequential(*(Block(**options) for _ in range(depth)))
        for block in self.blocks if rematerialize_blocks else ():
            rematerialize(block)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)).mean(1))

    def size(self):
        return sum(parameter.square().sum() for parameter in self.parameters())


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.factors


class Fit(Problem):
    """Classification with a ridge that makes it convex; the factors enter before the blocks."""

    def outputs(self, levels, batch, draws):
        return [levels.fit(levels.scale(batch[0])), levels.fit.size()]

    def criterion(self, outputs, levels, batch, draws):
        return nn.functional.cross_entropy(outputs[0], batch[1]) + outputs[1] * levels.scale.factors.square().sum() / 2


class Tune(Problem):
    def loss(self, levels, batch, draws):
        return nn.functional.cross_entropy(levels.fit(batch[0]), batch[1])


def batch(seed, count=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 3, generator=generator, **DOUBLE), torch.randint(3, (count,), generator=generator)


def engine_of(rematerialize_blocks, solver, precision="float32", count=5, **options):
    torch.manual_seed(0)
    fit, scale = Network(rematerialize_blocks, cut=True, **options).double(), Scale().double()
    parts = [batch(seed, count) for seed in (1, 2)]
    if precision == "bf16":
        fit, scale = fit.float(), scale.float()
        parts = [(images.float(), labels) for images, labels in parts]
    lower = Fit("fit", fit, optimizer=torch.optim.Adam(fit.parameters(), 0.01), data=parts[:1], solver=solver, steps=2)
    upper = Tune("scale", scale, optimizer=torch.optim.Adam(scale.parameters(), 0.01), data=parts[1:])
    return Engine(Graph(lower, upper), precision=precision)


GAUSS_NEWTON = [
    Row("conjugate_gradient", {"iterations": 5, "curvature": "gauss_newton", "product": product}, None, 0.0)
    for product in ("reverse", "forward", "finite_difference")
]


@pytest.mark.parametrize("row", ROWS + GAUSS_NEWTON, ids=str)
def test_every_solver_finds_the_hypergradient_of_plain_layers(row):
    found = []
    for side in SIDES:
        engine = engine_of(side, row.solver())
        if row.trains:
            engine.run(1)
        found.append(flatten(engine.hypergradient("scale")))
    assert found[0].norm() > 1e-3
    assert (found[1] - found[0]).norm() < 1e-10 * found[0].norm()


class Inner(Problem):
    def loss(self, levels, batch, draws):
        return Fit.criterion(self, Fit.outputs(self, levels, batch, draws), levels, batch, draws)


class Outer(Problem):
    """Reads the level that reads it."""

    def loss(self, levels, batch, draws):
        factors = levels.scale.factors
        loss = nn.functional.cross_entropy(levels.fit(levels.scale(batch[0])), batch[1])
        return loss + (factors * levels.top.factors).sum().sin() + 3 * factors.square().sum()


class Top(Problem):
    def loss(self, levels, batch, draws):
        return nn.functional.cross_entropy(levels.fit(levels.scale(batch[0])), batch[1])


@pytest.mark.parametrize("product", ["reverse", "forward"])
def test_levels_that_read_each_other(product):
    found = []
    for side in SIDES:
        torch.manual_seed(0)
        modules = {"fit": Network(side, norm=False).double(), "scale": Scale().double(), "top": Scale().double()}
        solver = ConjugateGradient(iterations=2, product=product)
        levels = (Inner("fit", modules["fit"], data=[batch(1)], solver=solver),)
        levels += (Outer("scale", modules["scale"], data=[batch(2)], solver=solver),)
        levels += (Top("top", modules["top"], data=[batch(3)]),)
        found.append(flatten(Engine(Graph(*levels)).hypergradient("top")))
    assert found[0].norm() > 1e-3
    assert (found[1] - found[0]).norm() < 1e-10 * found[0].norm()


@pytest.mark.parametrize("product", ["reverse", "forward", "finite_difference"])
def test_bf16(product):
    found = [
        flatten(engine_of(side, Identity(product=product), "bf16", norm=False).hypergradient("scale")) for side in SIDES
    ]
    assert found[0].norm() > 1e-3
    assert (found[1] - found[0]).norm() < 5e-3 * found[0].norm()  # sums in another order


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_first_derivatives_are_the_same_bit_for_bit(precision):
    states = []
    for side in SIDES:
        engine = engine_of(side, FiniteDifference(), precision, depth=2)
        engine.run(3)
        states.append(engine.state_dict())
    one, other = ([leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)] for state in states)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@cache
def functions(dropout=0.2):
    """The loss of the same network, plain and rematerialized, as functions of ({name: tensor}, images)."""
    torch.manual_seed(0)
    plain = Network(False, depth=2, dropout=dropout).double()
    other = copy.deepcopy(plain)
    for block in other.blocks:
        rematerialize(block)

    def loss_of(module):
        def loss(values, images):
            torch.manual_seed(3)
            with ReplayableDropout(), sdpa_kernel(SDPBackend.MATH):
                return 10 * functional_call(module, values, images).square().mean()

        return loss

    values = {name: value.detach() for name, value in plain.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    directions = {name: torch.randn(value.shape, generator=generator, **DOUBLE) for name, value in values.items()}
    return loss_of(plain), loss_of(other), values, directions, batch(4)[0]


def dot(one, other):
    return sum((value * other[name]).sum() for name, value in one.items())


def along(loss, values, directions, images):
    return jvp(lambda some: grad(loss, (0, 1))(some, images), (values,), (directions,))


def third(loss, values, directions, images):
    def slope(some):
        return dot(grad(loss)(some, images), directions)

    return grad(lambda some: dot(grad(slope)(some), directions))(values)


def batched(loss, values, directions, images):
    several = {name: torch.stack([value, 2 * value.cos()]) for name, value in directions.items()}
    return vmap(lambda one: along(loss, values, one, images), randomness="same")(several)


MODES = {
    "value": lambda loss, values, directions, images: loss(values, images),
    "gradient": lambda loss, values, directions, images: grad(loss, (0, 1))(values, images),
    "tangent": lambda loss, values, directions, images: jvp(lambda p: loss(p, images), (values,), (directions,)),
    "forward over reverse": along,
    "reverse over reverse over reverse": third,
    "vmap of forward over reverse": batched,
}


@pytest.mark.parametrize("mode", list(MODES))
def test_transforms_of_functions(mode):
    plain, other, *point = functions()
    expected, found = (tree_leaves(MODES[mode](loss, *point)) for loss in (plain, other))
    assert any(one.abs().max() > 1e-3 for one in expected)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_reverse_over_forward_is_forward_over_reverse():
    """torch's own reverse pass over a tangent is wrong where a normalization is passed."""
    plain, other, values, directions, images = functions()
    expected = jvp(lambda some: grad(plain)(some, images), (values,), (directions,))[1]
    found = grad(lambda some: jvp(lambda p: other(p, images), (some,), (directions,))[1])(values)
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("transform", [hessian, lambda loss: jacrev(jacrev(loss))], ids=["hessian", "jacrev"])
def test_dense_derivatives(transform):
    plain, other, values, _, images = functions(dropout=0.0)
    name = "blocks.0.norm.bias"
    one, two = (
        transform(lambda v, loss=loss: loss({**values, name: v}, images))(values[name]) for loss in (plain, other)
    )
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)


class Held:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor):
        self.tensor = tensor


def wide(side):
    torch.manual_seed(0)
    return nn.Sequential(*(rematerialized_block(side) for _ in range(4)))


def rematerialized_block(side):
    block = Block(inner=64)
    if side:
        rematerialize(block)
    return block


@pytest.mark.parametrize("second", [False, True], ids=["gradient", "its own graph"])
def test_what_autograd_keeps(second):
    """The tokens between the blocks, and for a gradient's own graph their cotangents: not what is within a block."""
    tokens = torch.randn(32, 6, 4, requires_grad=True)
    sizes = {}
    for side in SIDES:
        kept, module = [], wide(side)
        own = {parameter.data_ptr() for parameter in module.parameters()}

        def pack(tensor, kept=kept, own=own):
            held = Held(tensor)
            if tensor.data_ptr() not in own:
                kept.append(weakref.ref(held))
            return held

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor), sdpa_kernel(SDPBackend.MATH):
            result = module(tokens).sum()
            if second:
                result = torch.autograd.grad(result, [tokens, *module.parameters()], create_graph=True)
        sizes[side] = sum(one().tensor.numel() for one in kept if one() is not None)
        del result
    inputs = 4 * tokens.numel()
    # Inputs; once more, with cotangents, the last of which is a 1 that is repeated.
    assert sizes[True] <= (3 * inputs if second else inputs)
    assert sizes[False] > 10 * sizes[True]


@pytest.mark.parametrize("product", ["reverse", "forward", "finite_difference"])
def test_a_hypergradient_takes_less_memory(product):
    peaks = []
    for side in SIDES:
        engine = engine_of(side, ConjugateGradient(iterations=2, product=product), count=64, depth=4, inner=64)
        engine.hypergradient("scale")
        with MemoryTracker(torch.device("cpu")) as tracker:
            engine.hypergradient("scale")
        peaks.append(tracker.peak)
    assert peaks[1] < 0.8 * peaks[0]


class Counted(nn.Module):
    """Draws from every generator, moves a buffer that its result depends on, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("moved", torch.ones(()))
        self.calls = 0

    def forward(self, given, *, shift, times):
        self.calls += 1
        self.moved.mul_(2)
        noise = random.random() + np.random.rand() + torch.rand(())
        return {"product": self.weight * given["x"] * noise * times, "sum": (self.weight + shift) * self.moved}


def called(layer, evaluate):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    x, shift = torch.tensor([2.0, 3.0], requires_grad=True), torch.ones(2, requires_grad=True)
    result = evaluate({"x": x}, shift=shift, times=3)
    after = random.random(), np.random.rand(), torch.rand(()).item()
    slopes = torch.autograd.grad((result["product"] + result["sum"]).square().sum(), [x, shift, layer.weight])
    assert (random.random(), np.random.rand(), torch.rand(()).item()) != after
    return slopes, after, layer.moved.item(), (random.random(), np.random.rand(), torch.rand(()).item())


def test_a_repeated_call_finds_generators_and_buffers_as_they_were():
    plain, other = Counted(), Counted()
    rematerialize(other)
    expected, found = called(plain, plain), called(other, other)
    for one, two in zip(found[0], expected[0], strict=True):
        assert torch.equal(one, two)
    assert found[1:] == expected[1:]
    assert other.calls == 2


def test_a_call_that_nothing_is_kept_of_is_made_once():
    layer = Counted()
    rematerialize(layer)
    with torch.no_grad():
        layer({"x": torch.ones(2)}, shift=1.0, times=1)
    assert layer.calls == 1
    layer.weight.requires_grad_(False)
    layer({"x": torch.ones(2)}, shift=1.0, times=1)
    assert layer.calls == 2


def test_a_tensor_that_is_given_twice():
    layer = nn.Bilinear(2, 2, 1).double()
    rematerialize(layer)
    x = torch.tensor([[1.0, 2.0]], **DOUBLE).requires_grad_()
    slope = torch.autograd.grad(layer(x, x).sum() ** 3, x, create_graph=True)[0]
    found = torch.autograd.grad(slope.square().sum(), x)[0]
    slope = torch.autograd.grad(layer(x, x.clone()).sum() ** 3, x, create_graph=True)[0]
    torch.testing.assert_close(found, torch.autograd.grad(slope.square().sum(), x)[0], rtol=1e-12, atol=0)


def test_a_copy_has_parameters_of_its_own():
    block = rematerialized_block(True)
    other = copy.deepcopy(block)
    tokens = torch.randn(2, 3, 4)
    other(tokens).sum().backward()
    assert other.project.weight.grad is not None
    assert block.project.weight.grad is None
    assert list(other.state_dict()) == list(Block().state_dict())


def test_a_tensor_from_elsewhere_is_an_error():
    layer, other = nn.Linear(2, 2), torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="neither its parameter nor its input"):
        rematerialized(layer, lambda x: layer(x) * other, torch.ones(1, 2))
