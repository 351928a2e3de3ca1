"""Released autoencoders: what is loaded is what transformers loads, at another image size as well."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from transformers import ViTConfig, ViTMAEForPreTraining, ViTModel

from multilevel.levels import MaskedAutoencoder
from multilevel.levels.models.checkpoints import POSITIONS, load_autoencoder, read_config
from multilevel.solvers import SettingError

IMAGES = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
SIZES = {
    "image_size": 16, "channels": 1, "patch_size": 4, "width": 16, "depth": 2, "heads": 2,
    "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip
SCORES = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A checkpoint whose positions are not those that a new model has, and whose mask ratio is another one."""
    torch.manual_seed(0)
    model = MaskedAutoencoder.of_size(**SIZES, mask_ratio=0.5).mae
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    model.vit.save_pretrained(folder / "encoder")
    return folder


def test_every_weight_is_the_checkpoints_and_positions_stay_fixed(released):
    expected = ViTMAEForPreTraining.from_pretrained(released, mask_ratio=0.75)
    found = load_autoencoder(str(released), 16, 0.75)
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(found.state_dict()[key], value) for key, value in expected.state_dict().items())
    assert {key for key, value in found.named_parameters() if not value.requires_grad} == set(POSITIONS)
    prediction, hidden = MaskedAutoencoder(found).reconstruct(IMAGES, SCORES)
    assert torch.equal(prediction, expected(IMAGES, noise=SCORES).logits)
    assert hidden.sum(1).eq(12).all()


def test_a_stored_implementation_of_attention_is_ignored(released, tmp_path):
    """transformers would download one of the hub, and run it."""
    folder = shutil.copytree(released, tmp_path / "stranger")
    config = json.loads((folder / "config.json").read_text())
    stored = {"_attn_implementation": "stranger/kernel", "attn_implementation": "stranger/kernel"}
    (folder / "config.json").write_text(json.dumps({**config, **stored}))
    assert read_config(str(folder))._attn_implementation is None
    found, expected = (load_autoencoder(str(path), 16, 0.75) for path in (folder, released))
    assert found.config._attn_implementation == expected.config._attn_implementation
    assert torch.equal(*(MaskedAutoencoder(mae).reconstruct(IMAGES, SCORES)[0] for mae in (found, expected)))


def test_images_of_another_size_get_positions_of_their_own(released):
    found = load_autoencoder(str(released), 24, 0.75)
    before = ViTMAEForPreTraining.from_pretrained(released).state_dict()
    for key, value in found.state_dict().items():
        if key not in POSITIONS:
            assert torch.equal(value, before[key])
    new = MaskedAutoencoder.of_size(**{**SIZES, "image_size": 24}, mask_ratio=0.75).mae.state_dict()
    assert all(torch.equal(found.state_dict()[key], new[key]) for key in POSITIONS)
    images = torch.randn(3, 1, 24, 24)
    prediction, _ = MaskedAutoencoder(found).reconstruct(images, torch.rand(3, 36))
    assert prediction.shape == (3, 36, 16)


def test_a_checkpoint_without_a_decoder_is_refused(released, capfd):
    with pytest.raises(SettingError, match=r"init: got .*; 24 weights are missing, as decoder\.decoder_embed\.bias"):
        load_autoencoder(str(released / "encoder"), 16, 0.75)
    assert capfd.readouterr() == ("", "")


def test_another_kind_of_model_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"init: got .*; this one is of type vit$"):
        read_config(str(tmp_path))


def test_without_network_the_hub_is_one_line(monkeypatch, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        SettingError, match="init: got 'nobody/nothing'; expected a folder, or a name on the H"
    ) as error:
        read_config("nobody/nothing")
    assert len(str(error.value).splitlines()) == 1
    assert capfd.readouterr().err == ""
