"""An export reads pictures as training did, and has no values that are not finite."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import SIZES, write_model, write_pictures
from PIL import Image
from safetensors.torch import load_file, save_file

from multilevel.levels import MaskedAutoencoder
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.export import DriftReference, ExportedModel, TrainedModel, write_export
from multilevel.solvers import DataError, MultilevelError

CPU = torch.device("cpu")


def write_deep(folder: Path) -> Path:
    """The pictures of ``write_pictures`` with 12 bits in 16: at most 16 * 255, so the scale is that of 12 bits."""
    write_pictures(folder, {"good": 12, "dent": 12})
    for file in folder.rglob("*.png"):
        values = np.asarray(Image.open(file)).astype(np.uint16) * 16
        Image.fromarray(values).save(file.with_suffix(".tif"))
        file.unlink()
    return folder


def test_exports_read_pictures_of_twelve_bits_as_training_did(tmp_path):
    images = write_deep(tmp_path / "images")
    model = ExportedModel(write_model(tmp_path / "model", images), CPU)
    for file in sorted(images.rglob("*.tif"))[:5]:
        values = np.asarray(Image.open(file)).astype(float)
        expected = np.round(values / 4095 * 255)
        with Image.open(file) as picture:
            assert np.array_equal(model.pixels(picture)[0, 0], expected)
    dark = Image.fromarray(np.full((16, 16), 100, np.uint16))  # by the set's scale, not by its own
    assert (model.pixels(dark) == round(100 / 4095 * 255)).all()


def test_exports_of_earlier_versions_read_them_by_the_earlier_rule(tmp_path):
    folder = write_model(tmp_path / "model", write_deep(tmp_path / "images"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings.pop("pixel_range") == {"integers": [0, 4095], "floats": None}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    picture = Image.fromarray(np.full((16, 16), 25700, np.uint16))
    assert (ExportedModel(folder, CPU).pixels(picture) == 100).all()


def test_a_model_of_eight_bits_refuses_pictures_of_more(tmp_path):
    model = ExportedModel(write_model(tmp_path / "model", write_pictures(tmp_path / "i", {"good": 9, "dent": 9})), CPU)
    with pytest.raises(ValueError, match="its pixels are integers of 16 bits or more and no training image"):
        model.pixels(Image.fromarray(np.zeros((16, 16), np.uint16)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["weights", "mean"])
def test_values_that_are_not_finite_are_not_exported(tmp_path, value, where):
    images = write_pictures(tmp_path / "images", {"good": 9, "dent": 9})
    settings = DataSettings(
        name="folder", path=str(images), image_size=16, channels=1, patch_size=4, batch_size=4, mask_share=0
    )
    data = load_data(settings, allow_no_mask=True)
    autoencoder = MaskedAutoencoder.of_size(image_size=16, channels=1, **SIZES, mask_ratio=0.5)
    if where == "mean":
        data = replace(data, mean=torch.tensor([value]))
    else:
        next(autoencoder.parameters()).data.view(-1)[0] = value
    with pytest.raises(MultilevelError, match="has values that are not finite: export a run that has not diverged"):
        write_export(
            TrainedModel(autoencoder, None, data, CPU), tmp_path / "model", "transformers", lambda loss: "card"
        )
    assert not (tmp_path / "model").exists()


def test_an_export_with_values_that_are_not_finite_is_refused(tmp_path):
    folder = write_model(tmp_path / "model", write_pictures(tmp_path / "images", {"good": 9, "dent": 9}))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MultilevelError, match=r"broken export \(classifier\.bias has values that are not finite\)"):
        ExportedModel(folder, CPU)


def test_a_stored_implementation_of_attention_is_ignored(tmp_path):
    """transformers would download one of the hub, and run it."""
    folder = write_model(tmp_path / "model", write_pictures(tmp_path / "images", {"good": 9, "dent": 9}))
    pixels = np.random.default_rng(0).integers(0, 255, (3, 1, 16, 16), dtype=np.uint8)
    expected = ExportedModel(folder, CPU)(pixels)
    config = json.loads((folder / "config.json").read_text())
    stored = {"_attn_implementation": "stranger/kernel", "attn_implementation": "stranger/kernel"}
    (folder / "config.json").write_text(json.dumps({**config, **stored}))
    found = ExportedModel(folder, CPU)(pixels)
    assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
    folder = write_model(tmp_path / "model", write_pictures(tmp_path / "images", {"good": 9, "dent": 9}))
    (folder / "model.safetensors").unlink()
    (folder / "model.onnx").write_bytes(b"no classifier")
    with pytest.raises(MultilevelError, match=r"broken export \(model\.onnx: "):
        ExportedModel(folder, CPU)


def test_a_mean_of_other_channels_is_refused(tmp_path):
    folder = write_model(tmp_path / "model", write_pictures(tmp_path / "images", {"good": 9, "dent": 9}))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5]}))
    with pytest.raises(MultilevelError, match="a mean and a deviation of the pixels for each of 1 channels"):
        ExportedModel(folder, CPU)


@pytest.mark.parametrize("damage", ["not finite", "other images", "no rows"])
def test_a_damaged_reference_is_refused(tmp_path, damage):
    folder = write_model(tmp_path / "model", write_pictures(tmp_path / "images", {"good": 9, "dent": 9}))
    reference = load_file(folder / "reference.safetensors")
    if damage == "not finite":
        reference["features"][0, 0] = np.nan
    elif damage == "other images":
        reference["optics"] = reference["optics"][1:].clone()
    else:
        reference["features"] = torch.tensor(1.0)
    save_file(reference, folder / "reference.safetensors")
    with pytest.raises(DataError, match="cannot be read"):
        DriftReference.load(folder)
