"""bf16: forward products through attention, and what they cannot do."""

import pytest
import torch
from torch import nn

from multilevel import Engine, Graph, Problem
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems.evaluation.autocast import AutocastState
from multilevel.solvers import ConjugateGradient, ProductError
from multilevel.solvers.vectors import flatten

SIZES = ["model.width=16", "model.heads=2", "model.depth=1", "model.decoder_depth=1", "data.batch_size=8"]


@pytest.mark.parametrize(
    "settings",
    [
        ["solver=identity", "mask.gradient=both"],
        ["solver=identity", "mask.gradient=choice"],
        ["solver=unrolled"],
    ],
)
def test_forward_products_of_the_guided_autoencoder_are_the_reverse_ones(settings):
    found = {}
    for product in ("reverse", "forward"):
        config = compose_config([*SIZES, "data.limit=100", *settings, f"solver.product={product}"])
        engine = Engine(build_recipe(config).graph, precision="bf16")
        engine.run(1)
        found[product] = flatten(engine.hypergradient("mask"))
    assert found["reverse"].norm() > 0
    assert (found["forward"] - found["reverse"]).norm() < 0.1 * found["reverse"].norm()


class Classify(Problem):
    def loss(self, levels, batch, draws):
        images, labels = batch
        return nn.functional.cross_entropy(levels.fit(levels.scale(images)).mean(1).float(), labels)


def engine_of(layer, product):
    torch.manual_seed(0)
    data = [(torch.randn(12, 4, 8), torch.randint(3, (12,)))]
    solver = ConjugateGradient(iterations=3, damping=10, product=product)
    modules = {"fit": nn.Sequential(layer(), nn.Linear(8, 3)), "scale": nn.Linear(8, 8)}
    return Engine(Graph(*(Classify(*one, data=data, solver=solver) for one in modules.items())), precision="bf16")


class Attend(nn.Module):
    """Attention as torch.nn has it, without and with its weights."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0] + self.attention(x, x, x)[0]


def test_forward_products_through_torchs_own_attention_are_the_reverse_ones():
    found = [flatten(engine_of(Attend, product).hypergradient("scale")) for product in ("reverse", "forward")]
    assert (found[1] - found[0]).norm() < 0.02 * found[0].norm()


def test_dtypes_that_a_forward_derivative_mixes_end_in_one_line():
    """A layer norm of bf16 activations and float32 weights."""
    with pytest.raises(ProductError, match=r"precision=bf16 .* mixes dtypes: solver\.product=reverse works .*float32"):
        engine_of(lambda: nn.LayerNorm(8), "forward").hypergradient("scale")
    assert torch.isfinite(flatten(engine_of(lambda: nn.LayerNorm(8), "reverse").hypergradient("scale"))).all()


def test_the_state_of_autocast_comes_back():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = AutocastState.capture([x])
        with AutocastState.capture([x]).active(), torch.autocast("cpu", enabled=False):
            outside = AutocastState.capture([x])
        with outside.active():
            assert (x @ x).dtype == torch.float32
    with inside.active():
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32
