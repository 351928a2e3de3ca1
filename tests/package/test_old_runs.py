"""Folders that commit 918002b wrote still resume, evaluate, export, predict and report, with the numbers it got."""

import csv
import json

import numpy as np
import pytest
from old_runs import text, write_export, write_run, write_study
from PIL import Image
from sklearn.datasets import load_digits

from multilevel.__main__ import main

ANSWERS = json.loads(text("answers.json"))
#: Of a loss, a probability or a distance: what another processor or another torch may round otherwise.
ROUNDING = 1e-4


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(load_digits().images[:5]):
        Image.fromarray((image * 255 / 16).round().astype("uint8")).save(folder / f"{number}.png")
    return folder


def test_a_run_resumes(tmp_path):
    write_run(tmp_path / "run")
    assert main(["train", f"resume={tmp_path / 'run'}", "evaluate=false"]) == 2  # the run's own settings hold
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [json.dumps(record) for record in records[:8]] == text("metrics.jsonl").splitlines()
    went_on = [(record["level"], record["step"], record["loss"]) for record in records[8:]]
    assert [entry[:2] for entry in went_on] == [(level, step) for level, step, _ in ANSWERS["losses"]]
    losses = [loss for _, _, loss in ANSWERS["losses"]]
    np.testing.assert_allclose([entry[2] for entry in went_on], losses, rtol=ROUNDING)


def test_a_run_is_evaluated_and_exported(tmp_path):
    run = tmp_path / "run"
    write_run(run)
    assert main(["evaluate", str(run), "evaluation.protocols=[knn,linear_probe]"]) == 0
    scores = json.loads((run / "evaluation.json").read_text())
    for score, (encoder, protocol, accuracy) in zip(scores, ANSWERS["scores"], strict=False):
        assert (score["encoder"], score["protocol"]) == (encoder, protocol)
        few = 3 / 359  # of the test images
        if protocol == "linear_probe":  # whose choice of regularization was mended since
            assert score["metrics"]["accuracy"] > accuracy - few
        else:
            assert score["metrics"]["accuracy"] == pytest.approx(accuracy, abs=few)
    assert main(["export", str(run), "head=own", "references=false"]) == 0
    assert (run / "export" / "model.safetensors").exists()


def test_an_export_predicts_and_monitors(tmp_path, pictures):
    write_export(tmp_path / "export")
    assert main(["predict", str(tmp_path / "export"), str(pictures), f"output={tmp_path / 'labels.csv'}"]) == 0
    with (tmp_path / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ANSWERS["labels"]
    probabilities = [[float(row[str(digit)]) for digit in range(10)] for row in rows]
    np.testing.assert_allclose(probabilities, ANSWERS["probabilities"], atol=ROUNDING)
    status = main(["monitor", str(tmp_path / "export"), str(pictures), f"output={tmp_path / 'monitor.json'}"])
    assert status == {"no drift seen": 0, "drift: look at these": 3, "train again": 4}[ANSWERS["monitor"]["verdict"]]
    monitored = json.loads((tmp_path / "monitor.json").read_text())
    assert monitored["verdict"] == ANSWERS["monitor"]["verdict"]
    for name in ("squared_mmd", "threshold"):
        assert monitored[name] == pytest.approx(ANSWERS["monitor"][name], rel=ROUNDING)


def test_a_study_reports(tmp_path):
    write_study(tmp_path / "study")
    assert main(["study", f"resume={tmp_path / 'study'}"]) == 0
    verdict = json.loads((tmp_path / "study" / "study.json").read_text())["verdict"]
    assert verdict["decision"] == ANSWERS["study"]["decision"]
    for name in ("mean", "interval", "p_value"):
        assert verdict[name] == pytest.approx(ANSWERS["study"][name], rel=1e-9)  # of the same summaries
    assert (tmp_path / "study" / "report.html").exists()
