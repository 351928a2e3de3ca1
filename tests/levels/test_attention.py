"""Attention in bfloat16 on the CPU: the numbers of the fused kernel, without it; elsewhere that kernel."""

import pytest
import torch
from torch import nn

from multilevel.levels import MaskedAutoencoder
from multilevel.levels.models import attention as kernels

SIZES = {"width": 24, "depth": 2, "heads": 3, "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3}
generator = torch.Generator().manual_seed(0)


def autoencoder():
    torch.manual_seed(0)
    return MaskedAutoencoder.of_size(image_size=16, channels=1, patch_size=4, **SIZES, mask_ratio=0.75)


def inputs(tokens=9, dtype=torch.bfloat16):
    return [torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for _ in range(3)]


@pytest.fixture
def fused(monkeypatch):
    """How often the fused kernel has been called."""
    calls = []
    forward = kernels.sdpa_attention_forward

    def counted(*arguments, **keywords):
        calls.append(1)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(kernels, "sdpa_attention_forward", counted)
    return calls


def attention(query, key, value, mask=None, dropout=0.0):
    module = nn.Module()
    module.is_causal = False
    return kernels.attention(module, query, key, value, mask, dropout=dropout, scaling=0.3)[0]


def test_every_block_computes_without_the_fused_kernel_in_bfloat16_alone(fused):
    model, images = autoencoder(), torch.randn(4, 1, 16, 16, generator=generator)
    scores = torch.rand(4, 16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.reconstruct(images, scores)[0]
    assert not fused
    full = model.reconstruct(images, scores)[0]
    assert len(fused) == SIZES["depth"] + SIZES["decoder_depth"]
    assert (low.float() - full).norm() < 0.02 * full.norm()


@pytest.mark.parametrize("case", ["long", "mask", "dropout", "float32"])
def test_elsewhere_it_is_the_fused_kernel(fused, case):
    tokens = kernels.PLAIN_TOKENS + 1 if case == "long" else 9
    mask = torch.ones(2, 1, tokens, tokens, dtype=torch.bool) if case == "mask" else None
    attention(*inputs(tokens, torch.float32 if case == "float32" else torch.bfloat16), mask, 0.1 * (case == "dropout"))
    assert len(fused) == 1


def test_values_and_gradients_are_as_near_to_those_in_float32_as_the_fused_kernels_are():
    given = inputs()
    exact, plain = ([one.to(dtype).requires_grad_() for one in given] for dtype in (torch.float32, torch.bfloat16))
    values = [attention(*exact), attention(*plain)]
    slopes = [
        torch.autograd.grad(one.float().square().sum(), some) for one, some in zip(values, (exact, plain), strict=True)
    ]
    for low, full in zip((values[1], *slopes[1]), (values[0], *slopes[0]), strict=True):
        assert (low.float() - full).norm() < 0.01 * full.norm()
