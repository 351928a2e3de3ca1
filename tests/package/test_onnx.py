"""The ONNX file labels pictures of any size as predict does, where torch cannot be imported; int8 and its loss."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from multilevel.__main__ import main
from multilevel.configuration.composition import build_recipe
from multilevel.problems import load_weights
from multilevel.recipes.export import ExportedModel, onnx_model
from multilevel.recipes.export.weights import load_dinov2, transformers_config, transformers_weights
from multilevel.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
TINY = [
    "data=folder", "data.image_size=16", "data.patch_size=4", "data.batch_size=8", "model.width=16", "model.heads=2",
    "model.depth=2", "model.decoder_width=8", "model.decoder_heads=2", "model.decoder_depth=1", "steps=12",
    "evaluate=false", "levels.finetune.learning_rate=0.02",
]  # fmt: skip
CLASSES = {"良品": (200, 120, 60), "傷": (60, 120, 200)}
SIZES = [(16, 16), (40, 30), (31, 50), (9, 12), (120, 200), (64, 64)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Colour pictures of many sizes, in a folder for each class."""
    root, random = tmp_path_factory.mktemp("onnx") / "images", np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (root / name).mkdir(parents=True)
        for number in range(24):
            height, width = SIZES[number % len(SIZES)]
            small = random.normal(colour, 70, (5, 6, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(root / name / f"{number}.png")
    return root


def trained(pictures, channels, fit):
    """A run, and its exports in both formats."""
    folder = pictures.parent / f"run-{fit}"
    settings = [*TINY, f"data.channels={channels}", f"data.fit={fit}", f"data.path={pictures}", f"output={folder}"]
    assert main(["train", *settings]) == 0
    assert main(["export", str(folder), "references=false"]) == 0
    assert main(["export", str(folder), "references=false", "format=onnx", f"output={folder / 'onnx'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(pictures):
    return trained(pictures, 3, "crop")


@pytest.fixture(scope="module")
def grey_run(pictures):
    return trained(pictures, 1, "stretch")


@pytest.fixture(scope="module")
def quantized(run):
    """An export in 8 bits; what was printed is in the file printed.txt."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert (
            main(["export", str(run), "references=false", "format=onnx", "precision=int8", f"output={run / 'int8'}"])
            == 0
        )
    (run / "int8" / "printed.txt").write_text(printed.getvalue())
    return run / "int8"


def predicted(export, folder, *settings):
    """Labels and probabilities of each file, as predict writes them."""
    output = folder / f"{export.name}.csv"
    assert main(["predict", str(export), str(folder / "images"), f"output={output}", *settings]) == 0
    with output.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["file"]: (row["label"], [float(row[name]) for name in names(export)]) for row in rows}


def names(export):
    return list(json.loads((export / "config.json").read_text())["id2label"].values())


def script(text):
    return text.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(("name", "kind"), [("run", "onnx"), ("grey_run", "onnx"), ("run", "int8")])
def test_ten_lines_without_torch_label_as_predict_does(name, kind, request, pictures):
    run = request.getfixturevalue(name)
    if kind == "int8":
        request.getfixturevalue("quantized")
    code = script((run / kind / "README.md").read_text())
    assert len([line for line in code.splitlines() if line]) == 10
    assert sorted(set(re.findall(r"^(?:import|from) (\w+)", code, re.M))) == ["PIL", "numpy", "onnxruntime", "sys"]
    files = [str(file) for file in sorted(pictures.rglob("*.png"))]
    blocked = 'import sys\nfor name in ("torch", "transformers", "multilevel"):\n    sys.modules[name] = None\n'
    code = blocked + code.replace("FOLDER", str(run / kind))
    words = [sys.executable, "-X", "utf8", "-c", code, *files]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    expected = predicted(run / ("export" if kind == "onnx" else kind), pictures.parent)
    assert {label for label, _ in expected.values()} == set(CLASSES)
    for line, file in zip(printed.splitlines(), files, strict=True):
        name, label, *values = line.split()
        assert (name, label) == (file, expected[file][0])
        if kind == "onnx":
            np.testing.assert_allclose(np.array(values, float), expected[file][1], rtol=0, atol=1e-3)


def test_the_docs_have_the_script_of_the_card(run):
    code = script((run / "onnx" / "README.md").read_text())
    shown = script((ROOT / "docs" / "guided_masking.md").read_text())
    assert code == shown


def test_the_file_tells_its_inputs_outputs_and_classes(run):
    session = onnxruntime.InferenceSession(run / "onnx" / "model.onnx")
    (image,) = session.get_inputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", "height", "width", 3], "tensor(uint8)")
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes == {
        "label": ["batch"], "probabilities": ["batch", 2], "logits": ["batch", 2], "features": ["batch", 16],
        "defect": ["batch"], "stop": ["batch"],
    }  # fmt: skip
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == names(run / "onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    together = session.run(None, {"image": images})
    for row in range(3):
        for all_rows, single in zip(together, session.run(None, {"image": images[row : row + 1]}), strict=True):
            if all_rows.dtype == object:
                assert all_rows[row] == single[0]
            else:
                np.testing.assert_allclose(all_rows[row], single[0], rtol=0, atol=1e-5)
    label, probabilities, logits, *_ = together
    np.testing.assert_allclose(probabilities, torch.tensor(logits).softmax(1), atol=1e-6)
    assert label.tolist() == [names(run / "onnx")[column] for column in logits.argmax(1)]


def recipe_of(run):
    recipe = build_recipe(RunFolder.open("run", run).config())
    load_weights(recipe.graph, run / "checkpoint")
    return recipe


def test_exports_of_earlier_versions_predict_as_before(run, pictures, tmp_path):
    model = recipe_of(run).trained_model()
    config = transformers_config(model.autoencoder.mae.config, model.data.class_names)
    shutil.copytree(run / "onnx", tmp_path / "onnx")
    example = torch.zeros(2, 3, 16, 16)
    torch.onnx.export(  # as commit fb4d068 did
        load_dinov2(config, transformers_weights(model)).eval(), (example,), tmp_path / "onnx" / "model.onnx",
        input_names=["pixel_values"], output_names=["logits", "features"], external_data=False, dynamo=True,
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}}, verbose=False,
    )  # fmt: skip
    earlier, now = predicted(tmp_path / "onnx", pictures.parent), predicted(run / "onnx", pictures.parent)
    for file, (label, values) in earlier.items():
        assert label == now[file][0]
        np.testing.assert_allclose(values, now[file][1], rtol=0, atol=1e-5)


def test_the_loss_by_eight_bits_is_measured_on_held_out_images(run, quantized):
    data = recipe_of(run).data
    pixels, labels = data.mask.pixels(torch.arange(len(data.mask))), data.mask.labels.numpy()
    found = {}
    for kind in ("export", "int8"):
        logits, _ = ExportedModel(run / kind, torch.device("cpu"))(pixels.numpy())
        found[kind] = torch.tensor(logits).double().softmax(1).numpy()
    before, after = (found[kind].argmax(1) for kind in ("export", "int8"))
    expected = (
        f"int8: accuracy {accuracy_score(labels, after):.1%} instead of {accuracy_score(labels, before):.1%}, "
        f"balanced accuracy {balanced_accuracy_score(labels, after):.1%} instead of "
        f"{balanced_accuracy_score(labels, before):.1%}, another class for {(before != after).sum()} of {len(labels)} "
        f"images, probabilities changed by at most {np.abs(found['int8'] - found['export']).max():.3f} (measured on "
        "labelled images held out for mask learning)"
    )
    assert expected in (quantized / "printed.txt").read_text()
    assert expected in (quantized / "README.md").read_text()
    assert np.abs(found["int8"] - found["export"]).max() > 0
    assert (quantized / "model.onnx").stat().st_size < (run / "onnx" / "model.onnx").stat().st_size


def test_eight_bits_need_the_format_onnx(run, tmp_path, capsys):
    assert main(["export", str(run), "precision=int8", f"output={tmp_path / 'new'}"]) == 2
    assert "precision: got 'int8'; expected float32 with format=transformers" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_logits_is_refused(run, tmp_path, capsys, monkeypatch):
    plain = onnx_model.OnnxModel.run
    monkeypatch.setattr(
        onnx_model.OnnxModel,
        "run",
        lambda self, outputs, images: [value + 1e-3 for value in plain(self, outputs, images)],
    )
    assert main(["export", str(run), "format=onnx", f"output={tmp_path / 'new'}"]) == 2
    assert "logits are 0.001 from PyTorch's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_identity_names_weights_classes_and_preprocessing(run, quantized, tmp_path):
    def identity(folder):
        return ExportedModel(folder, torch.device("cpu")).identity

    exports = [run / "export", run / "onnx", quantized]
    identities = [identity(folder) for folder in exports]
    assert len(set(identities)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{12}", text) for text in identities)
    for folder, expected in zip(exports, identities, strict=True):
        shutil.copytree(folder, tmp_path / folder.name)
        assert identity(tmp_path / folder.name) == expected
    changed = tmp_path / "export" / "config.json"
    changed.write_text(changed.read_text().replace("\\u50b7", "\\u6c5a"))
    assert identity(tmp_path / "export") != identities[0]


def test_a_table_for_excel_opens_with_its_names(run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = next(pictures.rglob("*.png"))
    for name in ("=HYPERLINK(1).png", "良品,1.png"):
        shutil.copy(source, tmp_path / name)
    (tmp_path / "-壊.png").write_bytes(b"no image")
    files = ["=HYPERLINK(1).png", "良品,1.png", "-壊.png"]
    assert main(["predict", str(run / "export"), *files, "csv=excel", "output=excel.csv"]) == 1
    assert main(["predict", str(run / "export"), *files, "output=plain.csv"]) == 1
    written = (tmp_path / "excel.csv").read_bytes()
    assert written.startswith(b"\xef\xbb\xbffile,label,probability,error,")
    assert written.count(b"\r\n") == written.count(b"\n") == 4
    tables = []
    for name, encoding in (("excel.csv", "utf-8-sig"), ("plain.csv", "utf-8")):
        with (tmp_path / name).open(encoding=encoding, newline="") as file:
            tables.append(list(csv.reader(file)))
    excel, plain = tables
    assert [row[0] for row in excel] == ["file", "'=HYPERLINK(1).png", "良品,1.png", "'-壊.png"]
    assert excel == plain
    columns = ["file", "label", "probability", "error", *names(run / "export"), "defect", "decision", "model"]
    assert plain[0] == columns
    identity = ExportedModel(run / "export", torch.device("cpu")).identity
    assert [row[-1] for row in plain[1:]] == [identity] * 3
