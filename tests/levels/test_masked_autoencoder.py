"""The autoencoder against transformers' own models and the paper's definitions."""

import math

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from multilevel.levels import MaskedAutoencoder, MaskingNetwork

SIZES = {"image_size": 16, "channels": 3, "patch_size": 4}
IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return MaskedAutoencoder.of_size(
        **SIZES, width=24, depth=2, heads=3, decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.75
    )


def test_encode_is_vit_with_the_same_parameters_on_all_patches(autoencoder):
    config = autoencoder.mae.config
    vit = ViTModel(
        ViTConfig(**{name: getattr(config, name) for name in ViTConfig().to_dict() if hasattr(config, name)}),
        add_pooling_layer=False,
    )
    vit.load_state_dict(autoencoder.mae.vit.state_dict())
    expected = vit.eval()(IMAGES).last_hidden_state
    torch.testing.assert_close(autoencoder.encode(IMAGES), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(autoencoder.features(IMAGES), expected[:, 1:].mean(1), rtol=1e-5, atol=1e-5)


def test_patch_losses_are_those_of_transformers(autoencoder):
    scores = torch.rand(5, 16, generator=torch.Generator().manual_seed(1))
    prediction, hidden = autoencoder.reconstruct(IMAGES, scores)
    losses = autoencoder.patch_losses(IMAGES, prediction)
    expected = autoencoder.mae(IMAGES, noise=scores)
    assert torch.equal(hidden, expected.mask)
    torch.testing.assert_close((losses * hidden).sum() / hidden.sum(), expected.loss, rtol=1e-5, atol=1e-6)


def test_the_patches_with_the_largest_scores_are_hidden(autoencoder):
    scores = torch.rand(5, 16, generator=torch.Generator().manual_seed(1))
    _, hidden = autoencoder.reconstruct(IMAGES, scores)
    assert torch.equal(hidden.sum(1), torch.full((5,), 12.0))
    for row, mask in zip(scores, hidden, strict=True):
        assert row[mask == 1].min() > row[mask == 0].max()


def test_reconstruct_is_transformers_forward_with_a_gate_of_ones_as_well(autoencoder):
    scores = torch.rand(5, 16, generator=torch.Generator().manual_seed(1))
    expected = autoencoder.mae(IMAGES, noise=scores)
    for gate in (None, torch.ones(5, 16)):
        prediction, hidden = autoencoder.reconstruct(IMAGES, scores, gate)
        assert torch.equal(prediction, expected.logits)
        assert torch.equal(hidden, expected.mask)


def test_the_gate_scales_the_tokens_of_visible_patches(autoencoder):
    scores = torch.rand(5, 16, generator=torch.Generator().manual_seed(1))
    gate = torch.rand(5, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    prediction, hidden = autoencoder.reconstruct(IMAGES, scores, gate)
    prediction.square().sum().backward()
    assert torch.equal(gate.grad != 0, hidden == 0)
    vit, seen = autoencoder.mae.vit, []
    vit.layers[0].register_forward_pre_hook(lambda _, tokens: seen.append(tokens[0]))
    autoencoder.reconstruct(IMAGES, scores)
    autoencoder.reconstruct(IMAGES, scores, gate)
    visible = scores.argsort(1)[:, :4]
    torch.testing.assert_close(seen[1][:, 1:], seen[0][:, 1:] * gate.gather(1, visible)[..., None], rtol=1e-6, atol=0)
    assert torch.equal(seen[1][:, 0], seen[0][:, 0])


def sine_cosine(width, side):
    """Fixed positions of the MAE paper's code: half of the width for the column, half for the row."""
    table = np.zeros((1 + side * side, width))
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for index in range(quarter):
                frequency = 1 / 10000 ** (index / quarter)
                at = table[1 + row * side + column]
                at[index], at[quarter + index] = math.sin(column * frequency), math.cos(column * frequency)
                at[2 * quarter + index], at[3 * quarter + index] = math.sin(row * frequency), math.cos(row * frequency)
    return torch.from_numpy(table).float()[None]


def test_positions_are_the_papers_and_fixed(autoencoder):
    """transformers 5.23 leaves both at 0."""
    for positions, width in (
        (autoencoder.mae.vit.embeddings.position_embeddings, 24),
        (autoencoder.mae.decoder.decoder_pos_embed, 16),
    ):
        torch.testing.assert_close(positions.detach(), sine_cosine(width, 4), rtol=1e-5, atol=1e-6)
        assert not positions.requires_grad


def test_linear_layers_are_xavier_uniform(autoencoder):
    weight = autoencoder.mae.vit.layers[0].mlp.fc1.weight
    bound = math.sqrt(6 / sum(weight.shape))
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_the_masking_network_sees_patch_place_and_image():
    torch.manual_seed(0)
    network = MaskingNetwork(**SIZES, width=8)
    logits = network(IMAGES)
    assert logits.shape == (5, 16)
    changed = IMAGES.clone()
    changed[:, :, :4, :4] += 1.0  # patch 0
    moved = (network(changed) - logits).abs().mean(0)
    assert moved[0] > 5 * moved[1:].max()
    assert moved[1:].min() > 0
    same = network(torch.zeros(1, 3, 16, 16))[0]
    assert len(same.unique()) == 16  # by place alone


def test_the_temperature_divides_the_logits():
    networks = []
    for temperature in (1.0, 4.0):
        torch.manual_seed(0)
        networks.append(MaskingNetwork(**SIZES, width=8, temperature=temperature))
    torch.testing.assert_close(networks[1](IMAGES), networks[0](IMAGES) / 4, rtol=1e-6, atol=0)


def test_the_masking_network_is_a_small_fraction_of_the_encoder(autoencoder):
    count = sum(one.numel() for one in MaskingNetwork(**SIZES, width=6).parameters())
    assert count < 0.06 * sum(one.numel() for one in autoencoder.mae.vit.parameters())
