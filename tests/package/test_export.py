"""Exports: the same tokens, logits and reconstructions in transformers and onnxruntime; predicting; monitoring."""

import csv
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTMAEForPreTraining,
)

from multilevel.__main__ import main
from multilevel.configuration.composition import build_recipe
from multilevel.problems import load_weights
from multilevel.recipes.export import onnx_model
from multilevel.runs.folder import RunFolder

TINY = [
    "model.width=16", "model.heads=2", "model.depth=2", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "evaluation.max_images=100", "steps=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    assert main(["train", *TINY, f"output={folder}"]) == 0
    assert main(["export", str(folder), "head=own", "references=false"]) == 0
    assert (
        main(["export", str(folder), "head=own", "references=false", "format=onnx", f"output={folder.parent / 'onnx'}"])
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def recipe(run):
    folder = RunFolder.open("run", run)
    recipe = build_recipe(folder.config())
    load_weights(recipe.graph, folder.checkpoint)
    return recipe


@pytest.fixture(scope="module")
def pictures(recipe, run):
    """Test images as files."""
    folder = run.parent / "pictures"
    folder.mkdir()
    for index, image in enumerate(recipe.data.test.pixels(drawn(recipe))):
        Image.fromarray(image[0].numpy()).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def images(recipe):
    return recipe.data.normalize(recipe.data.test.pixels(drawn(recipe)))


def drawn(recipe):
    """At random: the set is in the order of those who wrote it."""
    return torch.randperm(len(recipe.data.test), generator=torch.Generator().manual_seed(0))[:120]


def expected_logits(recipe, images):
    with torch.no_grad():
        return recipe.modules["finetune"](recipe.modules["pretrain"].encode(images))


def load(kind, folder):
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_transformers_classifier_gives_the_same_logits(run, recipe, images):
    model = load(AutoModelForImageClassification, run / "export")
    with torch.no_grad():
        close(model(images).logits, expected_logits(recipe, images))
    assert tuple(model.config.id2label.values()) == recipe.data.class_names


def test_transformers_encoder_gives_the_same_tokens(run, recipe, images):
    with torch.no_grad():
        tokens = load(AutoModel, run / "export")(images).last_hidden_state
        close(tokens, recipe.modules["pretrain"].encode(images))


def test_transformers_autoencoder_gives_the_same_reconstruction(run, recipe, images):
    noise = torch.rand(120, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = load(ViTMAEForPreTraining, run / "export")(images, noise=noise)
        reconstruction, mask = recipe.modules["pretrain"].reconstruct(images, noise)
        losses = recipe.modules["pretrain"].patch_losses(images, reconstruction)
    close(found.logits, reconstruction)
    assert torch.equal(found.mask, mask)
    close(found.loss, (losses * mask).sum() / mask.sum())


def test_onnxruntime_gives_the_same_logits_at_any_batch_size(run, recipe, images):
    session = onnxruntime.InferenceSession(run.parent / "onnx" / "model.onnx")
    expected = expected_logits(recipe, images).numpy()
    pixels = recipe.data.test.pixels(drawn(recipe)).permute(0, 2, 3, 1).numpy()
    with torch.no_grad():
        features = recipe.modules["pretrain"].features(images).numpy()
    for count in (1, 5, 120):
        found = session.run(["logits", "features"], {"image": pixels[:count]})
        np.testing.assert_allclose(found[0], expected[:count], rtol=0, atol=1e-4)
        np.testing.assert_allclose(found[1], features[:count], rtol=0, atol=1e-4)


def test_the_processor_gives_the_pixels_of_the_data_room(run, pictures, images):
    processor = AutoImageProcessor.from_pretrained(run / "export")
    opened = [Image.open(path) for path in sorted(pictures.iterdir())]
    close(processor(opened, return_tensors="pt")["pixel_values"], images)


def test_the_card_tells_the_run(run, recipe):
    card = (run / "export" / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    for text in ("guided_mae", "digits", "step 3 of 3", "width 16", "pipeline_tag: image-classification"):
        assert text in card
    assert f"transformers {summary['versions']['transformers']}" in card
    assert str(run.parent) not in card
    names = [line.split(" | ")[1] for line in card.splitlines() if line.startswith("| trained encoder")]
    assert "linear_probe" in names
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(run / "export"))
    exec(compile(code, "README.md", "exec"), {})


def predict(*arguments):
    status = main(["predict", *map(str, arguments)])
    return status


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("export", ["run/export", "onnx"])
def test_predict_writes_what_the_model_says(run, recipe, pictures, images, tmp_path, export):
    output = tmp_path / "new" / "labels.csv"
    assert predict(run.parent / export, pictures, f"output={output}", "batch_size=50") == 0
    found = rows(output)
    chances = expected_logits(recipe, images).double().softmax(1).numpy()
    assert [row["file"] for row in found] == [str(path) for path in sorted(pictures.iterdir())]
    written = np.array([[float(row[name]) for name in recipe.data.class_names] for row in found])
    np.testing.assert_allclose(written, chances, rtol=0, atol=1e-5)
    for row, expected in zip(found, written, strict=True):
        assert float(row[row["label"]]) == float(row["probability"]) == expected.max()
        assert row["error"] == ""


def test_one_broken_file_does_not_lose_the_others(run, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.png").write_bytes(b"no image")
    good = sorted(pictures.iterdir())[:2]
    assert predict(run / "export", good[0], "a=b.png", good[1], good[0]) == 1
    found = rows(tmp_path / "predictions.csv")
    assert [row["file"] for row in found] == [str(good[0]), "a=b.png", str(good[1])]
    assert [bool(row["label"]) for row in found] == [True, False, True]
    assert found[1]["error"].startswith("unreadable (UnidentifiedImageError")
    assert found[1]["0"] == found[1]["probability"] == ""
    assert "a=b.png: unreadable" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a=b.png", "predictions.csv"]


def test_predict_prints_csv_alone_to_standard_output(run, pictures, capsys):
    assert predict(run / "export", sorted(pictures.iterdir())[0], "output=-") == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert "1 images labelled" in said.err


def test_an_export_needs_neither_the_run_nor_its_data(run, pictures, tmp_path):
    shutil.copytree(run / "export", tmp_path / "alone")
    assert predict(tmp_path / "alone", pictures, f"output={tmp_path / 'a.csv'}") == 0
    assert predict(run / "export", pictures, f"output={tmp_path / 'b.csv'}") == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def monitor(export, folder, output):
    status = main(["monitor", str(export), str(folder), f"output={output}"])
    return status, json.loads(output.read_text())


def test_monitor_tells_inverted_images_from_unchanged_ones(run, pictures, tmp_path, capsys):
    status, unchanged = monitor(run / "export", pictures, tmp_path / "same.json")
    assert (status, unchanged["verdict"]) == (0, "no drift seen")
    inverted = tmp_path / "inverted"
    inverted.mkdir()
    for path in pictures.iterdir():
        ImageOps.invert(Image.open(path)).save(inverted / path.name)
    (inverted / "broken.png").write_bytes(b"no image")
    status, drifted = monitor(run.parent / "onnx", inverted, tmp_path / "changed.json")
    assert (status, drifted["verdict"]) == (4, "train again")  # although a file could not be read
    assert drifted["p_value"] == 0.001
    changed = {test["name"]: test["changed"] for test in drifted["tests"]}
    assert changed.pop("features")
    assert changed == {name: name == "brightness" for name in drifted["optics"]}
    assert drifted["unusual_images"] > 100
    assert list(drifted["unreadable"]) == [str(inverted / "broken.png")]
    assert capsys.readouterr().out.splitlines().count("train again") == 1
    for name in ("same.png", "changed.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200


def test_a_change_of_optics_alone_is_status_3_and_named(run, pictures, tmp_path, capsys):
    (tmp_path / "larger").mkdir()
    for path in pictures.iterdir():
        Image.open(path).resize((16, 16), Image.Resampling.BOX).save(tmp_path / "larger" / path.name)
    (tmp_path / "larger" / "broken.png").write_bytes(b"no image")
    status, report = monitor(run / "export", tmp_path / "larger", tmp_path / "report.json")
    assert (status, report["verdict"]) == (3, "drift: look at these")
    said = capsys.readouterr()
    assert "broken.png: unreadable" in said.err
    assert "width: median 8, now 16 pixels (p = 0.008)" in said.out  # the smallest p of 999 permutations, times 8 tests
    changed = {test["name"]: test["changed"] for test in report["tests"]}
    assert (changed["width"], changed["height"], changed["brightness"]) == (True, True, False)


def test_unreadable_files_alone_are_status_1(run, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "some")
    (tmp_path / "some" / "broken.png").write_bytes(b"no image")
    assert monitor(run / "export", tmp_path / "some", tmp_path / "report.json")[0] == 1


def test_an_export_without_optics_has_its_features_tested_alone(run, pictures, tmp_path, capsys):
    shutil.copytree(run / "export", tmp_path / "export")
    reference = load_file(tmp_path / "export" / "reference.safetensors")
    earlier = {name: reference[name] for name in ("features", "logits")}
    save_file(earlier, tmp_path / "export" / "reference.safetensors")
    report = monitor(tmp_path / "export", pictures, tmp_path / "report.json")[1]
    assert [test["name"] for test in report["tests"]] == ["features"]
    assert report["tests"][0]["adjusted_p_value"] == report["p_value"]
    assert report["optics"] is None
    assert "export the run again to compare optics" in capsys.readouterr().out


def test_no_image_is_overwritten(run, pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "images")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    before = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    for command, output in (
        ("monitor", "images/000.json"),
        ("monitor", "link/000.json"),
        ("predict", "images/000.png"),
    ):
        assert main([command, str(run / "export"), str(tmp_path / "images"), f"output={tmp_path / output}"]) == 2
        assert "one of the inputs, would be overwritten" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == before


def test_monitor_names_the_odd_one(run, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "mixed")
    ImageOps.invert(Image.open(pictures / "007.png")).save(tmp_path / "mixed" / "007.png")
    report = monitor(run / "export", tmp_path / "mixed", tmp_path / "report.json")[1]
    assert report["most_unusual"][0]["file"] == str(tmp_path / "mixed" / "007.png")
    assert report["most_unusual"][0]["unusual"]
    shares = report["predictions"]["shares"].values()
    assert sum(one["new"] for one in shares) == pytest.approx(1)


def test_the_reference_is_of_images_that_were_held_out(run, recipe):
    found = load_file(run / "export" / "reference.safetensors")
    part = recipe.data.mask
    with torch.no_grad():
        features = recipe.modules["pretrain"].features(recipe.data.normalize(part.pixels(torch.arange(len(part)))))
        close(found["features"], features)
        close(found["logits"], recipe.modules["finetune"].linear(features))
    assert found["groups"].shape == (len(part),)
    pixels = part.pixels(torch.arange(len(part))).double()
    for column, expected in ((2, pixels.mean((1, 2, 3))), (3, pixels.std((1, 2, 3), correction=0))):
        torch.testing.assert_close(found["optics"][:, column].double(), expected, rtol=0, atol=1e-3)


def test_without_labels_encoder_and_decoder_are_exported(tmp_path, capsys):
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(20):
        noise = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        noise.resize((30, 24)).save(tmp_path / "images" / f"{index}.png")
    settings = ["data=folder", f"data.path={tmp_path / 'images'}", "data.image_size=16", "mask.policy=random"]
    assert main(["train", *TINY, *settings, "data.batch_size=4", f"output={tmp_path / 'run'}"]) == 0
    assert main(["export", str(tmp_path / "run"), "head=own", "references=false"]) == 0
    assert "the run has no classifier" in capsys.readouterr().out
    export = tmp_path / "run" / "export"
    recipe = build_recipe(RunFolder.open("run", tmp_path / "run").config())
    load_weights(recipe.graph, tmp_path / "run" / "checkpoint")
    processor = AutoImageProcessor.from_pretrained(export)
    path = tmp_path / "images" / "3.png"
    pixels = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        close(load(AutoModel, export)(pixels).last_hidden_state, recipe.modules["pretrain"].encode(pixels))
    names = [str(one) for one in recipe.data.pretrain.images.source.files]
    own = recipe.data.normalize(recipe.data.pretrain.images.pixels(torch.tensor([names.index(str(path))])))
    inside = (slice(None), slice(None), slice(None), slice(2, -2))  # at its edges the crop sees less than the whole
    difference = ((pixels - own) * recipe.data.std[:, None, None] * 255).abs()
    assert difference[inside].max() < 1.5  # in levels of 255
    assert main(["monitor", str(export), str(tmp_path / "images"), f"output={tmp_path / 'm.json'}"]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["predictions"] is None
    for arguments in (
        ["predict", str(export), str(path)],
        ["export", str(tmp_path / "run"), "head=own", "references=false", "format=onnx"],
    ):
        assert main([*arguments, f"output={tmp_path / 'none'}"]) == 2
        assert "classifier" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


WRONG = [
    (["export"], "one run folder: multilevel export RUN"),
    (["export", "{tmp}"], "export: got"),
    (["export", "{run}"], "output: got '{run}/export'; expected a folder that does not exist yet"),
    (["export", "{run}", "output={tmp}/new", "format=tflite"], "format: got 'tflite'; expected one of transformers"),
    (["export", "{run}", "output={tmp}/new", "data.pth=x"], "data.pth: got 'x'; expected a known setting"),
    (["predict", "{run}/export"], "multilevel predict EXPORT FILE"),
    (["predict", "{run}", "{run}"], "EXPORT: got '{run}'; expected a folder written by multilevel export"),
    (["predict", "{run}/export", "{tmp}"], "holds no images"),
    (["predict", "{run}/export", "{tmp}/none.png"], "FILE: got '{tmp}/none.png'"),
    (["predict", "{run}/export", "{pictures}", "batch=3"], "batch: got '3'; expected a setting of predict: output"),
    (["predict", "{run}/export", "{pictures}", "batch_size=0"], "batch_size: got 0"),
    (["predict", "{run}/export", "{pictures}", "device=none"], "device: got 'none'"),
    (["predict", "{run}/export", "{pictures}", "output={tmp}"], "output: got '{tmp}'"),
    (["monitor", "{run}/export", "{pictures}/000.png"], "1 images to compare with 287 training images are too few"),
    (["monitor", "{run}/export", "{pictures}", "output=m.png"], "output: got 'm.png'; expected a .json file"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_input_is_one_line(arguments, text, run, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"{run}": str(run), "{tmp}": str(tmp_path), "{pictures}": str(pictures)}

    def filled(value):
        for name, place in places.items():
            value = value.replace(name, place)
        return value

    assert main([filled(one) for one in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert filled(text) in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_command_that_installs_them(run, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_model.importlib.util, "find_spec", lambda name: None)
    assert main(["export", str(run), "head=own", "references=false", "format=onnx", f"output={tmp_path / 'new'}"]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
    assert predict(run.parent / "onnx", pictures, f"output={tmp_path / 'new'}") == 2
    assert "pip install onnxruntime" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise RuntimeError

    monkeypatch.setattr("multilevel.recipes.export.folder.reference_tensors", fail)
    with pytest.raises(RuntimeError):
        main(["export", str(run), "head=own", "references=false", f"output={tmp_path / 'new'}"])
    assert list(tmp_path.iterdir()) == []


def test_a_broken_export_is_named(run, pictures, tmp_path, capsys):
    shutil.copytree(run / "export", tmp_path / "broken")
    save_file({"dinov2.none": torch.zeros(1)}, tmp_path / "broken" / "model.safetensors")
    assert predict(tmp_path / "broken", pictures, f"output={tmp_path / 'none'}") == 2
    assert "holds a broken export" in capsys.readouterr().err
    (tmp_path / "broken" / "reference.safetensors").unlink()
    shutil.copy(run / "export" / "model.safetensors", tmp_path / "broken")
    assert main(["monitor", str(tmp_path / "broken"), str(pictures)]) == 2
    assert "export the run again" in capsys.readouterr().err


def test_the_best_head_is_deployed_scored_and_recorded(run, tmp_path, capsys):
    quick = ["evaluation.finetune.epochs=1", "evaluation.finetune.least_updates=5"]
    assert main(["export", str(run), *quick, f"output={tmp_path / 'best'}"]) == 0
    said = capsys.readouterr().out.splitlines()
    record = json.loads((tmp_path / "best" / "inspection.json").read_text())
    assert set(record["scores"]) == {"own", "linear_probe", "finetune"}
    assert record["scores"][record["head"]] == max(record["scores"].values())
    assert said[0].startswith(f"head={record['head']}: accuracy on 3 folds of training images: own ")
    assert said[1].startswith("this export on 359 test images: accuracy ")
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"## Classifier\n\n{said[0]}.\n\nThis{said[1][4:]}. These images had no part" in card
    labels, probabilities = np.array(record["labels"]), np.array(record["probabilities"])
    # scores are of probes that chose their own strength in each fold, probabilities of probes with the deployed one
    assert (probabilities.argmax(1) == labels).mean() == pytest.approx(record["scores"][record["head"]], abs=0.02)
