"""Whole studies on digits: parts, resuming after a kill, failures, the report, launchers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import torch
from filelock import FileLock
from PIL import Image

from multilevel.__main__ import main
from multilevel.study import launch
from multilevel.study.part import bring_to_its_end, log_path
from multilevel.study.plan import Study

SETTINGS = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=300", "evaluation.max_images=100",
    "steps=10", "checkpoint.every=2", "seeds=2",
]  # fmt: skip
NOT_THE_SAME_TWICE = ("seconds", "peak_memory_mib", "cost_ratio", "sentence")


def run_here(folder, name, threads):
    """A part in this process: spares the imports of a new one; what goes wrong goes into its log."""
    before = torch.get_num_threads()
    try:
        bring_to_its_end(folder, name)
    except Exception as error:
        log_path(folder, name).write_text(f"first line\n{error}\n")
    finally:
        torch.set_num_threads(before)


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in NOT_THE_SAME_TWICE}
    return [without_times(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(launch, "start_part", run_here)
        assert main(["study", *SETTINGS, f"output={folder}"]) == 0
    return folder, json.loads((folder / "study.json").read_text())


def test_every_part_is_an_ordinary_run(finished, capsys):
    folder, result = finished
    assert [part["name"] for part in result["parts"]] == [
        "random-seed0",
        "sampled-seed0",
        "random-seed1",
        "sampled-seed1",
    ]
    for part in result["parts"]:
        summary = json.loads((folder / "runs" / part["name"] / "summary.json").read_text())
        assert part["scores"] == summary["evaluation"]
        assert part["seconds"] == summary["seconds"]
    run = folder / "runs" / "sampled-seed1"
    assert main(["train", f"resume={run}"]) == 0
    assert main(["evaluate", str(run)]) == 0  # references=false is the run's own setting
    assert (
        json.loads((run / "evaluation.json").read_text())
        == json.loads((run / "summary.json").read_text())["evaluation"]
    )
    (run / "evaluation.json").unlink()


def test_arms_of_one_seed_start_from_the_same_weights_and_are_tested_on_the_same_images(finished):
    folder, result = finished

    def untrained(rows):
        return [row for row in rows if row["encoder"] != "trained encoder"]

    found = {part["name"]: untrained(part["scores"]) for part in result["parts"]}
    assert {row["encoder"] for row in found["random-seed0"]} == {
        "untrained encoder", "raw pixels", "supervised from scratch", "majority class"
    }  # fmt: skip
    assert {row["encoder"] for row in found["sampled-seed0"]} == {"majority class"}  # scored once for all arms
    assert found["random-seed0"] != found["random-seed1"]
    run = folder / "runs" / "sampled-seed0"
    assert main(["evaluate", str(run), "evaluation.references=supervised"]) == 0
    written = run / "evaluation.json"
    assert untrained(json.loads(written.read_text())) == found["random-seed0"]
    written.unlink()


def test_the_verdict_is_that_of_the_scores(finished, capsys):
    _, result = finished
    scores = {
        part["name"]: row["metrics"]["accuracy"]
        for part in result["parts"]
        for row in part["scores"]
        if (row["encoder"], row["protocol"]) == ("trained encoder", "linear_probe")
    }
    expected = {str(seed): scores[f"sampled-seed{seed}"] - scores[f"random-seed{seed}"] for seed in (0, 1)}
    assert result["verdict"]["differences"] == pytest.approx(expected)
    assert result["verdict"]["arm"] == "sampled"
    seconds = {part["name"]: part["seconds"] for part in result["parts"]}
    ratio = (seconds["sampled-seed0"] + seconds["sampled-seed1"]) / (seconds["random-seed0"] + seconds["random-seed1"])
    assert result["verdict"]["cost_ratio"]["seconds"] == pytest.approx(ratio)
    shown = re.search(r"training took ([\d.]+) times as long", result["verdict"]["sentence"])[1]
    decimals = len(shown.partition(".")[2])
    assert float(shown) == round(ratio, decimals)
    for arm in result["arms"]:
        assert arm["pretraining_updates"] == 20


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe")
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_stands_alone_and_holds_every_part(finished):
    folder, result = finished
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.sources) == 6  # scores, differences, costs, time; the masks of two arms
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert re.search(r"https?:|@import|url\(", text) is None
    for part in result["parts"]:
        assert part["name"] in text
    assert result["verdict"]["sentence"] in text
    assert "multilevel study model.width=16" in text
    for name in ("scores", "differences", "costs", "time"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300


def test_a_study_that_is_killed_resumes_to_the_same_result(finished, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "multilevel", "study", *SETTINGS, f"output={folder}"]
    study = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 1200
    while not list(folder.glob("runs/*/checkpoint/step-*")):
        assert time.monotonic() < deadline
        assert study.poll() is None
        time.sleep(0.01)
    study.send_signal(signal.SIGKILL)
    study.wait()
    with FileLock(folder / "runs" / ".random-seed0.lock", timeout=600):  # the part ends with the study
        assert not (folder / "study.json").exists()
        assert len(list((folder / "runs").glob("*/summary.json"))) < 2
    monkeypatch.setattr(launch, "start_part", run_here)
    assert main(["study", f"resume={folder}"]) == 0
    result = json.loads((folder / "study.json").read_text())
    assert without_times(result) == without_times(finished[1])


def test_resuming_with_more_seeds_trains_the_missing_parts_alone_and_a_failure_is_named(finished, monkeypatch, capsys):
    folder, before = finished
    started = []

    def start(folder, name, threads):
        started.append(name)
        if name == "random-seed2":
            log_path(folder, name).write_text("Traceback\nout of memory\n")
        else:
            run_here(folder, name, threads)

    monkeypatch.setattr(launch, "start_part", start)
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert main(["study", f"resume={folder}", "seeds=3"]) == 1
    said = capsys.readouterr()
    assert "the part random-seed2 failed: out of memory" in said.err
    assert started == ["random-seed2", "sampled-seed2"]
    result = json.loads((folder / "study.json").read_text())
    assert result["failed"] == {"random-seed2": "out of memory"}
    assert result["arms"][1]["seeds"] == [0, 1, 2]
    assert result["verdict"]["differences"] == before["verdict"]["differences"]  # seed 2 has no pair
    assert result["verdict"]["cost_ratio"] == before["verdict"]["cost_ratio"]
    assert "1 of 6 parts failed" in (folder / "report.html").read_text()
    for name, content in kept.items():
        (folder / name).write_bytes(content)


def test_equal_time_is_measured_once(tmp_path, monkeypatch):
    folder = tmp_path / "timed"
    monkeypatch.setattr(launch, "start_part", run_here)
    measured = []

    def calibrated(folder):
        from multilevel.study import calibration

        measured.append(folder)
        monkeypatch.setattr(calibration, "ROUNDS", 1)
        before = torch.get_num_threads()
        calibration.main([str(folder)])
        torch.set_num_threads(before)
        return Study.read(folder)

    monkeypatch.setattr("multilevel.study.command._calibrated", calibrated)
    settings = [*SETTINGS, "steps=3", "seeds=1", "equal=time", "transfer=planted", "transfer.limit=300"]
    assert main(["study", *settings, f"output={folder}"]) == 0
    assert main(["study", f"resume={folder}"]) == 0
    assert measured == [folder]
    result = json.loads((folder / "study.json").read_text())
    cost = result["study"]["seconds_per_step"]
    steps = {arm["name"]: arm["steps"] for arm in result["study"]["arms"]}
    longest = max(3 * seconds for seconds in cost.values())
    assert steps == {name: max(3, int(longest / seconds)) for name, seconds in cost.items()}
    assert {part["arm"]: part["steps"] for part in result["parts"]} == steps
    assert "1 seed cannot decide" in result["verdict"]["sentence"]
    assert "times as many pretraining updates" in result["verdict"]["sentence"]
    found = {row["encoder"] for part in result["parts"] for row in part["transfer"]}
    assert {"trained encoder", "untrained encoder", "raw pixels", "supervised from scratch"} <= found
    assert result["parts"][0]["transfer"] != result["parts"][0]["scores"]
    assert "Transfer to another data set" in (folder / "report.html").read_text()


def test_a_hydra_launcher_runs_parts_in_processes_of_its_own(finished, tmp_path, monkeypatch):
    def start(folder, name, threads):
        (folder / name).write_text(str(os.getpid()))

    monkeypatch.setattr(launch, "start_part", start)
    monkeypatch.chdir(tmp_path)
    study = Study.read(finished[0])
    study = Study(**{**vars(study), "launcher": ["hydra/launcher=joblib"], "jobs": 2})
    launch.check_launcher(study.launcher)
    folder = tmp_path / "a study's folder"
    folder.mkdir()
    arguments = sys.argv
    launch.run_parts(study, folder, ["random-seed0", "sampled-seed0"])
    assert sys.argv is arguments
    processes = {(folder / name).read_text() for name in ("random-seed0", "sampled-seed0")}
    assert str(os.getpid()) not in processes


def test_a_score_that_is_no_number_is_left_out_and_named(finished, capsys):
    folder, _ = finished
    path = folder / "runs" / "sampled-seed0" / "summary.json"
    before = path.read_text()
    summary = json.loads(before)
    summary["evaluation"][0]["metrics"]["accuracy"] = float("nan")
    summary["levels"]["pretrain"]["skipped"] = 3
    path.write_text(json.dumps(summary))
    try:
        assert main(["study", f"resume={folder}"]) == 0
    finally:
        path.write_text(before)
    assert "1 seed cannot decide" in capsys.readouterr().out
    report = (folder / "report.html").read_text()
    assert "linear_probe accuracy with all labels is not a number" in report
    assert "3 updates of level pretrain were skipped" in report
    assert "NaN" not in (folder / "study.json").read_text()


def test_a_collapsed_masking_network_and_unsteady_hypergradients_are_told_in_the_report(finished):
    folder, _ = finished
    path = folder / "runs" / "sampled-seed0" / "summary.json"
    before = path.read_text()
    summary = json.loads(before)
    assert -1 < summary["levels"]["mask"]["median_cosine"] < 1
    summary["levels"]["mask"] |= {"updates": 20, "median_cosine": -0.03}
    summary["collapse"] = {"step": 7, "at_the_end": True, "advice": "mask.guidance=0.5"}
    path.write_text(json.dumps(summary))
    try:
        assert main(["study", f"resume={folder}"]) == 0
    finally:
        path.write_text(before)
    report = (folder / "report.html").read_text()
    assert "collapsed at step 7, and still had at the end: nearly the same patches are hidden in all images" in report
    assert "try mask.guidance=0.5" in report
    assert "level mask changed direction between updates (the median cosine is -0.03); try levels.mask.acc" in report
