"""The threshold that an export stores is the one that held-out images ask for; predict, ONNX, evaluate and inspect use
it; and the export's references are those of evaluate."""

import csv
import json
import shutil

import numpy as np
import onnxruntime
import pytest
from exports import write_pictures
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from multilevel.__main__ import main
from multilevel.recipes.export.operating_point import choose_operating_point, good_class
from multilevel.solvers import DataError, SettingError

TINY = [
    "data=folder", "data.image_size=16", "data.channels=1", "data.patch_size=4", "data.batch_size=8", "model.width=16",
    "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2", "model.decoder_depth=1",
    "steps=8", "evaluate=false", "data.near_copies=keep",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 60 good images and 24 defects of two kinds, its exports in both formats, and new images."""
    root = tmp_path_factory.mktemp("operating")
    write_pictures(root / "images", {"good": 60, "dent": 12, "burr": 12})
    write_pictures(root / "new" / "test", {"good": 30, "dent": 8, "burr": 8}, seed=1)
    assert main(["train", *TINY, f"data.path={root / 'images'}", f"output={root / 'run'}"]) == 0
    assert main(["export", str(root / "run"), "head=linear_probe", "max_false_alarms=0.1"]) == 0
    common = ["head=linear_probe", "format=onnx", "threshold=recall", "min_recall=0.8", "references=false"]
    assert main(["export", str(root / "run"), *common, f"output={root / 'onnx'}"]) == 0
    return root


def inspection(export):
    return json.loads((export / "inspection.json").read_text())


def held_out_scores(export):
    """Scores of held-out images, and whether each is a defect; classes are in alphabetical order."""
    record = inspection(export)
    probabilities, labels = np.array(record["probabilities"]), np.array(record["labels"])
    return 1 - probabilities[:, 2], labels != 2  # burr, dent, good


def test_the_threshold_is_the_lowest_that_stops_few_enough_good_images(run):
    point = inspection(run / "run" / "export")["operating_point"]
    scores, defect = held_out_scores(run / "run" / "export")
    assert (point["good"], point["rule"], point["limit"]) == ("good", "false_alarms", 0.1)
    good = scores[~defect]
    assert (good >= point["threshold"]).mean() <= 0.1
    lower = scores[scores < point["threshold"]].max()  # the next image that a lower threshold would stop
    assert (good >= lower).mean() > 0.1


def test_the_threshold_is_the_highest_that_finds_enough_defects(run):
    point = inspection(run / "onnx")["operating_point"]
    scores, defect = held_out_scores(run / "onnx")
    assert (scores[defect] >= point["threshold"]).mean() >= 0.8
    higher = scores[scores >= point["threshold"]].min()
    assert (scores[defect] > higher).mean() < 0.8


def predictions(export, images, path, *settings):
    assert main(["predict", str(export), str(images), f"output={path}", *settings]) == 0
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["run/export", "onnx"])
def test_predict_stops_from_the_threshold(run, kind, tmp_path):
    point = inspection(run / kind)["operating_point"]
    rows = predictions(run / kind, run / "new", tmp_path / "stored.csv")
    defect = np.array([float(row["burr"]) + float(row["dent"]) for row in rows])
    assert [float(row["defect"]) for row in rows] == pytest.approx(defect, abs=2e-6)
    sure = np.abs(defect - point["threshold"]) > 2e-6
    assert sure.sum() >= len(rows) - 1
    expected = np.where(defect >= point["threshold"], "stop", "pass")
    assert [row["decision"] for row, known in zip(rows, sure, strict=True) if known] == expected[sure].tolist()
    given = predictions(run / kind, run / "new", tmp_path / "given.csv", "threshold=0.5", "good=dent")
    defect = np.array([float(row["burr"]) + float(row["good"]) for row in given])
    assert [row["decision"] == "stop" for row in given] == (defect >= 0.5).tolist()


def test_the_onnx_file_stops_what_predict_stops(run, tmp_path):
    rows = predictions(run / "onnx", run / "new", tmp_path / "stored.csv")
    session = onnxruntime.InferenceSession(run / "onnx" / "model.onnx")
    stored = json.loads(session.get_modelmeta().custom_metadata_map["operating_point"])
    assert stored == inspection(run / "onnx")["operating_point"]
    for row in rows:
        image = np.asarray(Image.open(row["file"]))[None, :, :, None]
        defect, stop = session.run(["defect", "stop"], {"image": image})
        assert defect[0] == pytest.approx(float(row["defect"]), abs=1e-5)
        assert bool(stop[0]) == (row["decision"] == "stop")


def test_evaluate_scores_an_export_as_it_is(run, tmp_path, capsys):
    export = run / "run" / "export"
    rows = predictions(export, run / "new", tmp_path / "predictions.csv")
    capsys.readouterr()
    path = tmp_path / "scores.json"
    assert main(["evaluate", str(export), f"data.path={run / 'new'}", f"output={path}"]) == 0
    said, scores = capsys.readouterr().out, json.loads(path.read_text())
    truth = [row["file"].split("/")[-2] for row in rows]
    own, areas = scores["metrics"]["this export"], []
    assert own["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, [row["label"] for row in rows]))
    for name in ("burr", "dent", "good"):
        areas.append(roc_auc_score([kind == name for kind in truth], [float(row[name]) for row in rows]))
    assert own["macro_roc_auc"] == pytest.approx(np.mean(areas), abs=2e-3)  # six digits in the CSV make ties
    assert scores["metrics"]["majority class"]["balanced_accuracy"] == pytest.approx(1 / 3)
    defects = [row for row, kind in zip(rows, truth, strict=True) if kind != "good"]
    found = sum(row["decision"] == "stop" for row in defects)
    expected = binomtest(found, 16).proportion_ci(0.95, method="exact")
    share = scores["shares"]["defects found"]
    assert (share["count"], share["total"]) == (found, 16)
    assert (share["low"], share["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert "46 images of test" in said
    assert "on the run's own test images, balanced accuracy: this export " in said


def test_a_folder_with_some_of_the_classes_is_scored_by_name(run, tmp_path):
    export, folder = run / "run" / "export", tmp_path / "some"
    for name in ("dent", "good"):  # not the first of the export's classes
        shutil.copytree(next((run / "new").rglob(name)), folder / name)
    rows = predictions(export, folder, tmp_path / "predictions.csv")
    assert main(["evaluate", str(export), f"data.path={folder}", f"output={tmp_path / 'scores.json'}"]) == 0
    shares = json.loads((tmp_path / "scores.json").read_text())["shares"]
    for name in ("dent", "good"):
        of_class = [row for row in rows if row["file"].split("/")[-2] == name]
        assert shares[f"recall of {name}"]["count"] == sum(row["label"] == name for row in of_class)
        assert shares[f"recall of {name}"]["total"] == len(of_class)


def test_the_references_are_those_of_evaluate(run, capsys):
    stored = json.loads((run / "run" / "export" / "evaluation.json").read_text())
    assert main(["evaluate", str(run / "run"), "evaluation.protocols=[linear_probe]"]) == 0
    rows = json.loads((run / "run" / "evaluation.json").read_text())
    expected = {row["encoder"]: row["metrics"]["balanced_accuracy"] for row in rows}
    assert stored["model"] == pytest.approx(expected.pop("trained encoder"))  # head=linear_probe
    assert stored["metric"] == "balanced_accuracy"
    assert stored["references"] == pytest.approx(expected)
    assert set(expected) == {"untrained encoder", "raw pixels", "majority class", "supervised from scratch"}
    card = (run / "run" / "export" / "README.md").read_text()
    assert f"raw pixels {100 * expected['raw pixels']:.1f}%" in card
    assert not (run / "onnx" / "evaluation.json").exists()


def test_inspect_reports_on_the_test_images_of_a_run(run, tmp_path):
    assert main(["inspect", str(run / "run")]) == 0
    numbers = json.loads((run / "run" / "inspection.json").read_text())
    division = json.loads((run / "run" / "data.json").read_text())["train"]
    test = {name for name, part in zip(division["names"], division["parts"], strict=True) if part == "t"}
    assert {row["file"] for row in numbers["files"]} == test
    point = inspection(run / "run" / "export")["operating_point"]
    assert numbers["decision"]["threshold"]["value"] == point["threshold"]
    assert numbers["decision"]["threshold"]["source"] == "out_of_fold"
    assert (run / "run" / "inspection.html").exists()
    stored = json.loads((run / "run" / "export" / "evaluation.json").read_text())
    better = {name for name, score in stored["references"].items() if score > stored["model"]}
    assert {entry["name"] for entry in numbers["better"]} == better


def test_distances_are_from_good_training_images(run, tmp_path):
    report = tmp_path / "report.html"
    assert main(["inspect", str(run / "run" / "export"), str(run / "images"), f"output={report}"]) == 0
    numbers = json.loads(report.with_suffix(".json").read_text())
    division = json.loads((run / "run" / "data.json").read_text())["train"]
    labelled = [name for name, part in zip(division["names"], division["parts"], strict=True) if part in "fm"]
    good = [name for name in labelled if name.startswith("good/")]
    assert numbers["distance"]["reference_class"] == "good"
    assert numbers["distance"]["reference_images"] == len(good)
    assert numbers["distance"]["repeated"] == len(good)  # a defective training image is not among the nearest


WRONG = [
    (["evaluate", "{export}"], "data.path: got None; expected a folder"),
    (["evaluate", "{export}", "data.path={root}/none"], "expected a folder"),
    (["evaluate", "{export}", "data.pth=x"], "data.pth: got 'x'"),
    (["evaluate", "{export}", "data.path={root}/strange"], "strange/odd'; expected a class of the export: burr"),
    (["predict", "{export}", "{root}/new", "threshold=high"], "threshold: got 'high'"),
    (["predict", "{export}", "{root}/new", "good=dent"], "threshold: got None; expected a number: the export"),
    (["predict", "{export}", "{root}/new", "good=ok"], "good: got 'ok'; expected one of the classes burr"),
    (["inspect", "{root}/new"], "a run folder that holds config.yaml"),
    (["export", "{root}/run", "good=ok", "output={root}/x"], "good: got 'ok'; expected one of the classes"),
    (["export", "{root}/run", "threshold=low", "output={root}/x"], "threshold: got 'low'; expected false_"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_input_is_one_line(run, arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("odd", "good"):
        (run / "strange" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(run / "strange" / name / "a.png")
    words = {"{export}": str(run / "run" / "export"), "{root}": str(run)}
    filled = []
    for argument in arguments:
        for name, place in words.items():
            argument = argument.replace(name, place)
        filled.append(argument)
    assert main(filled) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert text in error[0]
    assert not (run / "x").exists()
    assert list(tmp_path.iterdir()) == []


def test_without_a_class_of_good_parts_there_is_no_threshold():
    assert good_class(["cat", "dog"]) is None
    assert good_class(["NG", "ＯＫ"]) == "ＯＫ"  # noqa: RUF001
    with pytest.raises(SettingError, match="good"):
        good_class(["cat", "dog"], "bird")
    with pytest.raises(DataError, match="needs defects"):
        choose_operating_point(np.array([[1.0, 0.0]]), np.array([0]), ["ok", "dent"], "ok", "recall", 0.9)
