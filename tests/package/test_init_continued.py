"""New runs that start from a run or an export: each part stands where it stood, head rows follow the classes' names."""

import json
import shutil

import numpy as np
import pytest
import torch
from old_runs import write_export
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, ViTMAEForPreTraining

from multilevel.__main__ import main
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.recipes.export import ExportedModel
from multilevel.solvers import SettingError

TINY = [
    "model.patch_size=4", "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8",
    "model.decoder_heads=2", "model.decoder_depth=1", "mask.policy=sampled",
]  # fmt: skip
FOLDER = ["data=folder", "data.channels=1", "data.image_size=16", "data.batch_size=4", "evaluate=false"]


def write_images(root, brightness):
    """Twelve noisy grey images of each class."""
    random = np.random.default_rng(0)
    for name, level in brightness.items():
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(random.normal(level, 20, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A run with the classes dent and good, and its export, in the folders run and export."""
    root = tmp_path_factory.mktemp("old")
    write_images(root / "images", {"good": 60, "dent": 100})
    settings = [*FOLDER, f"data.path={root / 'images'}", "steps=3", f"output={root / 'run'}"]
    assert main(["train", *TINY, *settings, "mask.temperature=2"]) == 0
    assert main(["export", str(root / "run"), "head=own", "references=false", f"output={root / 'export'}"]) == 0
    return root


def recipe_from(init, images, *settings):
    return build_recipe(compose_config([f"init={init}", *FOLDER, f"data.path={images}", *settings]))


def trained(old):
    (checkpoint,) = (old / "run" / "checkpoint").glob("step-3")
    return load_file(checkpoint / "weights.safetensors")


@pytest.mark.parametrize("kind", ["run", "export"])
def test_every_part_stands_where_it_stood(old, kind):
    recipe = recipe_from(old / kind, old / "images", "mask.temperature=2", "seed=5")
    weights = trained(old)
    assert {key.partition(".")[0] for key in weights} == {"pretrain", "finetune", "mask"}
    for level, module in recipe.modules.items():
        own = {f"{level}.{name}": tensor for name, tensor in module.state_dict().items()}
        assert own.keys() == {key for key in weights if key.startswith(f"{level}.")}
        for name, tensor in own.items():
            assert torch.equal(tensor, weights[name]), name
    parts = "encoder; decoder; masking network; head for dent, good"
    assert f"taken from the {kind} {old / kind}: {parts}" in recipe.notes
    assert not any("new weights" in note or "changed" in note or "left out" in note for note in recipe.notes)


def test_before_the_first_update_an_image_has_the_probabilities_that_it_had(old, tmp_path):
    images = write_images(tmp_path / "bright", {"good": 120, "dent": 180})
    recipe = recipe_from(old / "export", images)
    model = ExportedModel(old / "export", torch.device("cpu"))
    pixels = recipe.data.test.pixels(torch.arange(len(recipe.data.test)))
    with torch.no_grad():
        normalized = recipe.data.normalize(pixels)
        logits = recipe.modules["finetune"](recipe.modules["pretrain"].encode(normalized))
    np.testing.assert_allclose(logits.numpy(), model(pixels.numpy())[0], atol=1e-5)
    (said,) = [note for note in recipe.notes if note.startswith("images are normalized as for")]
    assert said.endswith("(init_statistics=own uses that)")
    own = recipe_from(old / "export", images, "init_statistics=own").data
    every = own.pretrain.pixels(torch.arange(len(own.pretrain))).double() / 255
    assert float(own.mean) == pytest.approx(float(every.mean()), abs=1e-6)
    assert float(recipe.data.mean) < float(own.mean) - 0.2


def test_rows_of_the_head_follow_the_names_of_the_classes(old, tmp_path):
    images = write_images(tmp_path / "more", {"burr": 140, "good": 60, "dent": 100})
    recipe, weights = recipe_from(old / "export", images), trained(old)
    assert recipe.data.class_names == ("burr", "dent", "good")
    linear = recipe.modules["finetune"].linear.state_dict()
    for name, tensor in linear.items():
        assert torch.equal(tensor[1:], weights[f"finetune.linear.{name}"])
    assert "starting from new weights: the head for burr" in recipe.notes
    fewer = write_images(tmp_path / "fewer", {"burr": 140, "good": 60})
    recipe = recipe_from(old / "run", fewer)
    assert torch.equal(recipe.modules["finetune"].linear.bias[1], weights["finetune.linear.bias"][1])
    assert "left out: its head for dent" in recipe.notes


def test_a_head_of_another_task_is_not_taken(old, tmp_path):
    images = write_images(tmp_path / "images", {"good": 60, "dent": 100})
    for file in sorted((images / "dent").glob("*.png")):
        (images / "masks" / "dent").mkdir(parents=True, exist_ok=True)
        mask = np.zeros((16, 16), np.uint8)
        mask[4:12, 4:12] = 255
        Image.fromarray(mask).save(images / "masks" / "dent" / file.name)
    recipe = recipe_from(old / "export", images, "task=segmentation")
    assert "starting from new weights: the head (the export's is for task=classification)" in recipe.notes


def test_other_settings_are_said(old):
    notes = recipe_from(old / "run", old / "images", "data.fit=stretch").notes
    assert f"changed since {old / 'run'}: data.fit=stretch (was crop), mask.temperature=1.0 (was 2.0)" in notes


def test_sizes_and_shapes_of_images_must_fit(old):
    for wrong, expected in [
        ("model.width=24", r"model\.width: got 24; expected 16, as in "),
        ("model.patch_size=8", r"model\.patch_size: got 8; expected 4, as in "),
        ("data.image_size=32", r"data\.image_size: got 32; expected 16, as in init="),
        ("data.channels=3", r"data\.channels: got 3; expected 1, as in init="),
    ]:
        for kind in ("run", "export"):
            with pytest.raises(SettingError, match=expected):
                recipe_from(old / kind, old / "images", wrong)


def test_a_new_run_begins_at_step_0_and_stores_where_a_link_led(old, tmp_path):
    (tmp_path / "link").symlink_to(old / "export")
    settings = [f"init={tmp_path / 'link'}", *FOLDER, f"data.path={old / 'images'}", "steps=1", "mask.temperature=2"]
    assert main(["train", *settings, "levels.pretrain.learning_rate=1e-12", f"output={tmp_path / 'run'}"]) == 0
    assert f"init: {(old / 'export').resolve()}\n" in (tmp_path / "run" / "config.yaml").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["levels"]["mask"]["updates"] == 1
    new = load_file(tmp_path / "run" / "checkpoint" / "step-1" / "weights.safetensors")
    for name, tensor in trained(old).items():
        if name.startswith("pretrain."):
            torch.testing.assert_close(new[name], tensor, rtol=0, atol=1e-9)
    assert main(["export", str(tmp_path / "run"), "head=own", "references=false"]) == 0
    assert str(old) not in (tmp_path / "run" / "export" / "README.md").read_text()


def test_the_exported_masking_network_and_its_settings(old):
    with safe_open(old / "export" / "masking.safetensors", "pt") as file:
        assert json.loads(file.metadata()["mask"])["temperature"] == 2.0
        names = set(file.keys())
    assert names == {key.removeprefix("mask.") for key in trained(old) if key.startswith("mask.")}


def test_transformers_does_not_see_the_masking_network(old, tmp_path):
    shutil.copytree(old / "export", tmp_path / "without")
    (tmp_path / "without" / "masking.safetensors").unlink()
    for kind in (AutoModel, AutoModelForImageClassification, ViTMAEForPreTraining):
        _, seen = kind.from_pretrained(old / "export", output_loading_info=True)
        _, expected = kind.from_pretrained(tmp_path / "without", output_loading_info=True)
        assert seen == expected
        assert not seen["missing_keys"]


def test_an_export_of_an_earlier_version_has_no_masking_network(tmp_path):
    write_export(tmp_path / "export")
    recipe = build_recipe(compose_config([f"init={tmp_path / 'export'}"]))
    assert "starting from new weights: the masking network (the export holds none)" in recipe.notes
    assert "head for 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in recipe.notes[1]


def test_what_cannot_be_started_from_is_one_line(old, tmp_path):
    shutil.copytree(old / "export", tmp_path / "onnx")
    (tmp_path / "onnx" / "model.safetensors").rename(tmp_path / "onnx" / "model.onnx")
    shutil.copytree(old / "export", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"cut off")
    shutil.copytree(old / "run", tmp_path / "moved")
    config = (tmp_path / "moved" / "config.yaml").read_text()
    (tmp_path / "moved" / "config.yaml").write_text(config.replace(str(old / "images"), str(tmp_path / "gone")))
    recipe_from(tmp_path / "moved", old / "images")  # data.json has the class names and statistics
    (tmp_path / "moved" / "data.json").unlink()  # as in runs of earlier versions
    shutil.copytree(old / "run", tmp_path / "empty", ignore=shutil.ignore_patterns("checkpoint"))
    for name, expected in [
        ("onnx", "expected an export with format=transformers"),
        ("broken", "expected an intact export"),
        ("moved", "expected a run whose data are where they were, for class names and statistics, or its export"),
        ("empty", "expected a run with a checkpoint"),
    ]:
        with pytest.raises(SettingError, match=f"^init: got '{tmp_path / name}'; {expected}") as error:
            recipe_from(tmp_path / name, old / "images")
        assert len(str(error.value).splitlines()) == 1
