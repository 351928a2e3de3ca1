"""Runs that go on with a released autoencoder."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTMAEForPreTraining

from multilevel.__main__ import main
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.levels import MaskedAutoencoder
from multilevel.solvers import SettingError

SIZES = {
    "patch_size": 2, "width": 16, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("released")
    MaskedAutoencoder.of_size(image_size=8, channels=1, **SIZES, mask_ratio=0.5).mae.save_pretrained(folder)
    return folder


def test_a_run_takes_weights_and_sizes_from_the_checkpoint(released, tmp_path, capsys):
    settings = [f"init={released}", "steps=1", "levels.pretrain.learning_rate=1e-12"]
    assert main(["train", *settings, "evaluate=false", f"output={tmp_path / 'run'}"]) == 0
    assert f"starting from {released}: model.patch_size=2 model.width=16 model.depth=1" in capsys.readouterr().err
    trained = load_file(tmp_path / "run" / "checkpoint" / "step-1" / "weights.safetensors")
    weights = ViTMAEForPreTraining.from_pretrained(released).state_dict()
    assert {f"pretrain.mae.{key}" for key in weights} == {key for key in trained if key.startswith("pretrain.")}
    for key, value in weights.items():
        torch.testing.assert_close(trained[f"pretrain.mae.{key}"], value, rtol=0, atol=1e-9)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["levels"]["pretrain"]["updates"] == 2


def test_sizes_that_are_given_hold_where_they_agree(released):
    assert build_recipe(compose_config([f"init={released}", "model.width=16"])).settings.model.width == 16
    with pytest.raises(SettingError, match=r"model\.width: got 24; expected 16, as in "):
        build_recipe(compose_config([f"init={released}", "model.width=24"]))
    with pytest.raises(SettingError, match=r"model\.width: got 48; expected 16, as in "):
        build_recipe(compose_config([f"init={released}", "model=tiny"]))


def test_the_data_must_fit_the_checkpoint(released):
    with pytest.raises(SettingError, match=r"data\.channels: got 3; expected 1, as in init="):
        build_recipe(compose_config([f"init={released}", "data.channels=3"]))
    with pytest.raises(SettingError, match=r"data\.image_size: got 9; expected a multiple of 2, the patches of init="):
        build_recipe(compose_config([f"init={released}", "data.image_size=9"]))


def test_without_a_checkpoint_sizes_are_needed():
    with pytest.raises(SettingError, match=r"model\.patch_size: got 0; expected a whole number of at least 1"):
        build_recipe(compose_config(["model=checkpoint"]))
