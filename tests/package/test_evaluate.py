"""multilevel evaluate: other protocols, few labels, the validation split, and other sets than the run's own."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from claims import above, claims
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from multilevel.__main__ import main
from multilevel.commands.evaluate import encoder_passes, evaluation_config
from multilevel.configuration.composition import build_recipe
from multilevel.problems.checkpoint import write_digests
from multilevel.runs.folder import RunFolder

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=300", "evaluation.max_images=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run")


def train(folder, seed=0):
    settings = ["steps=3", "data.validation_share=0.1", "evaluation.split=validation"]
    assert main(["train", *TINY, *settings, f"seed={seed}", f"output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def write_images(root):
    """A folder of colour images of 12 x 12: handwritten noughts and ones, each in a hue of its own."""
    digits = load_digits()
    for label, name in enumerate(("nought", "one")):
        for part, some in (("train", slice(0, 60)), ("test", slice(60, 90))):
            (root / part / name).mkdir(parents=True)
            for index, image in enumerate(digits.images[digits.target == label][some]):
                grey = Image.fromarray((image * 15).astype(np.uint8)).resize((12, 12))
                Image.merge("RGB", [grey, grey, grey.point(lambda value: value // 2)]).save(
                    root / part / name / f"{index}.png"
                )
    return root


def evaluation(folder, name="evaluation.json"):
    return json.loads((folder / name).read_text())


def test_protocols_and_shares_of_the_labels(run, capsys):
    options = [
        "evaluation.labels=[0.1,1.0]",
        "evaluation.finetune.epochs=1",
        "evaluation.finetune.least_updates=1",
        "evaluation.metric=macro_f1",
    ]
    assert main(["evaluate", str(run), "evaluation.protocols=[knn,finetune]", *options]) == 0
    scores = evaluation(run)
    assert {(one["encoder"], one["protocol"], one["labels"]) for one in scores} == {
        (encoder, protocol, labels)
        for encoder in ("trained encoder", "untrained encoder", "raw pixels", "majority class")
        for protocol in ("knn", "finetune")
        for labels in (0.1, 1.0)
        if (encoder, protocol) != ("raw pixels", "finetune")
    } | {("supervised from scratch", "supervised", labels) for labels in (0.1, 1.0)}
    assert {tuple(one["metrics"]) for one in scores} == {("macro_f1", "accuracy", "balanced_accuracy", "macro_roc_auc")}
    said = capsys.readouterr().out
    assert "validation macro f1, 10% of the labels" in said
    assert "finetuning  whole network" in said
    assert "the trained encoder is not better than " in said


def test_the_supervised_row_has_the_passes_that_the_run_made(run, images):
    folder = RunFolder(run)
    transfer = ["data=folder", f"data.path={images}", "evaluation.split=test"]
    for steps, overrides in ((3, []), (3, transfer), (6, [])):  # of 6 steps, 3 were made
        stored = OmegaConf.merge(folder.config(), {"steps": steps})
        recipe = build_recipe(evaluation_config(stored, overrides)[0])
        assert encoder_passes(recipe, folder, stored) == 3 * 16 * (2 + 1)


@claims(raw_pixels=above(0.95), trained_encoder=above(0.8))
def transfer(seed):
    with TemporaryDirectory() as folder:
        scores = accuracies(train(Path(folder) / "run", seed), write_images(Path(folder) / "images"))
    return {"raw_pixels": scores["raw pixels"], "trained_encoder": scores["trained encoder"]}


def accuracies(run, images):
    """{encoder: accuracy} on other images than the run's."""
    arguments = ["data=folder", f"data.path={images}", "evaluation.split=test", "evaluation.protocols=[linear_probe]"]
    assert main(["evaluate", str(run), *arguments]) == 0
    return {one["encoder"]: one["metrics"]["accuracy"] for one in evaluation(run, "evaluation-folder.json")}


def test_transfer_to_a_folder(run, images, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    scores = accuracies(run, images)
    assert scores["majority class"] == 0.5
    transfer.hold({"raw_pixels": scores["raw pixels"], "trained_encoder": scores["trained encoder"]})
    assert "evaluation-folder.json" in capsys.readouterr().out
    (run / "evaluation-folder.json").unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_transfer_takes_the_trained_encoder(run, images, tmp_path):
    other = tmp_path / "run"
    (other / "checkpoint" / "step-3").mkdir(parents=True)
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    weights = load_file(run / "checkpoint" / "step-3" / "weights.safetensors")
    for name, tensor in weights.items():
        if name.startswith("pretrain.mae.vit."):
            tensor.zero_()
    save_file(weights, other / "checkpoint" / "step-3" / "weights.safetensors")
    write_digests(other / "checkpoint" / "step-3")
    scores = accuracies(other, images)
    assert scores["trained encoder"] == 0.5 < scores["untrained encoder"]


def test_a_broken_test_image_does_not_matter_to_validation(images, tmp_path):
    broken = tmp_path / "images"
    for path in images.rglob("*.png"):
        copy = broken / path.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"broken" if "test" in copy.parts else path.read_bytes())
    settings = ["data=folder", f"data.path={broken}", "data.image_size=8", "data.patch_size=2", "data.batch_size=8"]
    settings += ["data.validation_share=0.2", "evaluation.split=validation", "steps=1", f"output={tmp_path / 'run'}"]
    assert main(["train", *TINY[:6], *settings]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["evaluation"][-1]["metrics"]["accuracy"] == 0.5
    assert main(["evaluate", str(tmp_path / "run"), "evaluation.split=test"]) == 2


def test_a_run_from_before_the_options_can_be_finetuned(run, tmp_path):
    old = tmp_path / "run"
    old.mkdir()
    config = OmegaConf.load(run / "config.yaml")
    for name in ("protocols", "labels", "split", "metric", "finetune", "head", "linear_probe_sgd"):
        del config.evaluation[name]
    del config.data["validation_share"]
    (old / "config.yaml").write_text(OmegaConf.to_yaml(config))
    (old / "checkpoint").symlink_to(run / "checkpoint")
    arguments = [
        "evaluation.protocols=[finetune]",
        "evaluation.finetune.epochs=1",
        "evaluation.finetune.least_updates=1",
    ]
    assert main(["evaluate", str(old), *arguments]) == 0
    assert {one["protocol"] for one in evaluation(old)} == {"finetune", "supervised"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["evaluation.protocols=[svm]"], "evaluation.protocols: got 'svm'; expected some of finetune, head, knn"),
        (["evaluation.finetune.epoch=3"], "evaluation.finetune.epoch: got '3'; expected a known setting"),
        (["evaluation.finetune.epochs=0"], "evaluation.finetune.epochs: got 0"),
        (["evaluation.finetune.epochs=few"], "evaluation.finetune.epochs: got 'few'; expected a whole number"),
        (["evaluation.labels=[0.1,2.5]"], "evaluation.labels: got 2.5; expected a list, each a number above 0: up"),
        (["evaluation.metric=recall"], "evaluation.metric: got 'recall'; expected one of accuracy, balanced_accuracy"),
        (["data.validation_share=0"], "data.validation_share: got 0; expected 0.1, as in the run"),
        (["data.test_share=0.3"], "data.test_share: got 0.3; expected 0.2, as in the run"),
        (["data.image_size=16"], "data.image_size: got 16; expected 8, as in the run"),
        (["data=folder", "data.path={images}", "data.channels=3", "data.image_size=64"], "data.image_size: got 64"),
        (["data=none"], "data: got 'none'; expected one of cifar10"),
        (["data=folder"], "evaluation.split: got 'validation'; expected test, or data.validation_share above 0"),
        (["data=folder", "evaluation.split=test"], "data.path: got None"),
        (["data=folder", "data.pth=x", "evaluation.split=test"], "data.pth: got 'x'; expected a known setting"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(run, images, arguments, text, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["evaluate", str(run), *(one.replace("{images}", str(images)) for one in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
