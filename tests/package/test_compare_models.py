"""compare-models: a better model is promoted, an equal one is not, and what cannot be compared is one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from exports import write_model, write_pictures
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from multilevel.__main__ import main
from multilevel.commands.labelled_images import group_of
from multilevel.recipes.export import ExportedModel
from multilevel.recipes.export.exported import probabilities


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images and the models old (hardly fitted), new, of three classes, and an encoder."""
    root = tmp_path_factory.mktemp("compare")
    training = write_pictures(root / "training", {"good": 60, "dent": 60})
    write_model(root / "old", training, strength=1e-5)
    write_model(root / "new", training, strength=1e3)
    write_model(root / "encoder", training, classifies=False)
    write_model(root / "three", write_pictures(root / "more", {"good": 40, "dent": 40, "burr": 40}), strength=1e3)
    write_pictures(root / "fresh", {"good": 60, "dent": 30}, seed=1)
    write_pictures(root / "burrs", {"good": 20, "dent": 20, "burr": 20}, seed=2)
    (root / "empty").mkdir()
    return root


def compared(place, tmp_path, *arguments):
    output = tmp_path / "report.json"
    status = main(["compare-models", *map(str, arguments[:3]), f"output={output}", *arguments[3:]])
    return status, json.loads(output.read_text())


def chances(place, name, folder):
    """Labels and a model's probabilities, file by file."""
    model = ExportedModel(place / name, torch.device("cpu"))
    rows, labels = [], []
    for label in ("dent", "good"):
        for file in sorted((place / folder / label).iterdir()):
            rows.append(np.asarray(Image.open(file))[None])
            labels.append(label)
    return np.array(labels), probabilities(model(np.stack(rows))[0])


def test_a_better_model_is_promoted_with_the_numbers_of_scikit_learn(place, tmp_path, capsys):
    status, report = compared(place, tmp_path, place / "old", place / "new", place / "fresh")
    assert (status, report["verdict"]) == (0, "promote")
    measures = {row["name"]: row for row in report["measures"]}
    for side, name in (("old", "old"), ("new", "new")):
        labels, model = chances(place, name, "fresh")
        predicted = np.array(["dent", "good"])[model.argmax(1)]
        balanced = balanced_accuracy_score(labels, predicted)
        assert measures["balanced accuracy"][side] == pytest.approx(balanced)
        assert measures["area under the ROC curve"][side] == pytest.approx(roc_auc_score(labels == "good", model[:, 1]))
        assert measures["recall of dent"][side] == pytest.approx((predicted == labels)[labels == "dent"].mean())
    said = capsys.readouterr().out
    assert said.startswith("promote: balanced accuracy")
    assert "McNemar's exact test" in said
    identity = ExportedModel(place / "new", torch.device("cpu")).identity
    assert report["models"]["new"] == {"export": "new", "identity": identity}
    with Image.open(tmp_path / "report.png") as picture:
        assert min(picture.size) > 200


def test_a_worse_model_is_kept_out_and_its_loss_of_recall_is_said(place, tmp_path):
    status, report = compared(place, tmp_path, place / "new", place / "old", place / "fresh")
    assert (status, report["verdict"]) == (3, "keep")
    assert "; recall of dent falls by " in report["sentence"]


def test_few_images_decide_nothing(place, tmp_path):
    few = write_pictures(tmp_path / "few", {"good": 12, "dent": 3}, seed=3)
    status, report = compared(place, tmp_path, place / "old", place / "new", few)
    assert (status, report["verdict"], report["more_images"]) == (4, "not decided", report["more_images"])
    assert "recall of dent rests on 3 images or groups, and 5 are the fewest" in report["sentence"]


def test_groups_are_those_of_the_file_names(place, tmp_path):
    _, report = compared(place, tmp_path, place / "old", place / "new", place / "fresh", r"group=\w+/0\d")
    assert report["groups"] == 9  # 000 to 059 and 000 to 029 by tens
    assert report["mcnemar_p_value"] is None
    folder = place / "fresh"
    assert group_of(folder / "good" / "lot3" / "1.png", folder, "folder") == "good/lot3"
    assert group_of(folder / "good" / "lot3" / "1.png", folder, r"lot(\d+)") == "3"


def test_a_class_that_one_model_lacks(place, tmp_path, capsys):
    arguments = [place / "new", place / "three", place / "burrs"]
    _, counted = compared(place, tmp_path, *arguments, "missing_class=count")
    said = capsys.readouterr().out
    assert f"{place / 'new'} does not know the class burr: its 20 images are errors of that model" in said
    recalls = {row["name"]: row["old"] for row in counted["measures"]}
    assert recalls["recall of burr"] == 0
    _, without = compared(place, tmp_path, *arguments, "missing_class=leave_out")
    assert without["images"] == 40
    assert "recall of burr" not in {row["name"] for row in without["measures"]}


WRONG = [
    (["{p}/old"], "two exported folders and a folder of images: multilevel compare-models OLD NEW FOLDER"),
    (["{p}/old", "{p}/none", "{p}/fresh"], "EXPORT: got '{p}/none'; expected a folder written by multilevel export"),
    (["{p}/old", "{p}/old", "{p}/fresh"], "NEW: got '{p}/old'; expected another model than OLD={p}/old"),
    (["{p}/old", "{p}/copy", "{p}/fresh"], "NEW: got '{p}/copy'; expected another model than OLD="),
    (["{p}/old", "{p}/encoder", "{p}/fresh"], "{p}/encoder holds an encoder without a classifier"),
    (["{p}/old", "{p}/new", "{p}/nowhere"], "FOLDER: got '{p}/nowhere'; expected a folder with one subfolder"),
    (["{p}/old", "{p}/new", "{p}/empty"], "{p}/empty has no subfolder with images"),
    (["{p}/old", "{p}/new", "{p}/split"], "FOLDER: got '{p}/split'; expected the images of one split, such as"),
    (["{p}/old", "{p}/new", "{p}/broken"], "{p}/broken/good/b.png: unreadable (UnidentifiedImageError"),
    (["{p}/old", "{p}/three", "{p}/burrs"], "missing_class: got 'refuse'; expected leave_out or count: {p}/old does"),
    (["{p}/old", "{p}/new", "{p}/fresh", "group=("], "group: got '('; expected folder, or a regular expression ("),
    (["{p}/old", "{p}/new", "{p}/fresh", "group=lot"], "group: got 'lot'; expected a regular expression that matches"),
    (["{p}/old", "{p}/new", "{p}/fresh", "metric=recall"], "metric: got 'recall'; expected one of balanced_accuracy, "),
    (["{p}/old", "{p}/new", "{p}/fresh", "minimum_effect=0"], "minimum_effect: got 0.0; expected"),
    (["{p}/old", "{p}/new", "{p}/fresh", "output=a.png"], "output: got 'a.png'; expected a .json file"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_input_is_one_line(place, words, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not (place / "copy").exists():
        shutil.copytree(place / "old", place / "copy")
        write_pictures(place / "split" / "train", {"good": 1, "dent": 1})
        write_pictures(place / "broken", {"good": 1, "dent": 1})
        (place / "broken" / "good" / "b.png").write_bytes(b"no image")
    assert main(["compare-models", *(word.replace("{p}", str(place)) for word in words)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text.replace("{p}", str(place)) in lines[0]
    assert list(tmp_path.iterdir()) == []
