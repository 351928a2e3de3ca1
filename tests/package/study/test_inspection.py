"""A small study with few labels and a good class, from the command line: labels, counts, costs, and the report."""

import json
import re
from dataclasses import replace

import pytest

from multilevel.__main__ import main
from multilevel.study import launch, report
from multilevel.study.part import bring_to_its_end
from multilevel.study.plan import Study
from multilevel.study.report import write_report
from multilevel.study.results import collect

SETTINGS = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=300", "evaluation.max_images=100",
    "steps=2", "seeds=1", "evaluation.protocols=[knn]", "good=8", "labels=1,15", "labels_per_class=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(launch, "start_part", lambda folder, name, threads: bring_to_its_end(folder, name))
        assert main(["study", *SETTINGS, f"output={folder}"]) == 0
    return folder, json.loads((folder / "study.json").read_text())


def test_amounts_of_labels_are_named_in_scores_tables_and_captions(finished):
    folder, result = finished
    images = {row["labels"]: row["images"] for row in result["parts"][0]["scores"]}
    assert images == {15.0: 15, "5 per class": 50, 1.0: 100}
    sentences = [comparison["sentence"] for comparison in result["comparisons"]]
    assert "nearest neighbours accuracy with 15 labels is" in sentences[0]
    assert "nearest neighbours accuracy with 5 labels per class is" in sentences[1]
    assert "nearest neighbours accuracy is" in sentences[2]
    report = (folder / "report.html").read_text()
    assert "15 labels (15 images), 5 labels per class (50 images) and all labels (100 images)" in report


def test_every_encoder_is_counted_as_an_inspection_and_priced_without_training_again(finished, monkeypatch):
    folder, result = finished
    ways = {way["way"]["name"]: way for way in result["money"]["ways"]}
    assert set(ways) == {"random", "sampled", "untrained encoder", "raw pixels"}
    assert ways["sampled"]["way"]["machine_hours"] > 0 == ways["raw pixels"]["way"]["machine_hours"]
    assert ways["random"]["way"]["labels"] == 100 < ways["sampled"]["way"]["labels"]  # sampled masks learn from all
    scored = result["parts"][0]["scored_images"]
    for error in result["inspection"]:
        assert error["good"] == scored["8"]
        assert error["defects"] == sum(scored.values()) - scored["8"]
    monkeypatch.setattr(launch, "start_part", None)  # nothing is trained again
    costs = ["cost.miss=50", "cost.false_alarm=2", "defect_rate=0.02", "max_false_alarms=0.1", "parts_per_day=100"]
    assert main(["study", f"resume={folder}", *costs]) == 0
    priced = json.loads((folder / "study.json").read_text())
    assert priced["money"]["ways"][0]["costs"]["uninspected"] == 1000 * 0.02 * 50
    assert priced["study"]["money"]["max_false_alarms"] == 0.1
    assert main(["study", f"resume={folder}", "cost.miss=60"]) == 0  # the other settings stay
    again = json.loads((folder / "study.json").read_text())
    assert again["money"]["ways"][0]["costs"]["uninspected"] == 1000 * 0.02 * 60
    assert again["study"]["money"]["cost"]["false_alarm"] == 2


def test_the_report_of_a_finished_study_is_written_in_japanese(finished, monkeypatch, capsys):
    folder, result = finished
    monkeypatch.setattr(launch, "start_part", None)  # nothing is trained again
    monkeypatch.setattr(report, "fonts_for", lambda characters: ((), characters))
    assert main(["study", f"resume={folder}", "language=ja"]) == 0
    said = capsys.readouterr()
    assert said.err.count("the words in the pictures are English: no installed font has Japanese characters") == 1
    assert "1 seed cannot decide whether sampled masks pay" in said.out  # messages stay English
    assert json.loads((folder / "study.json").read_text())["verdict"] == result["verdict"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<html lang="ja">' in page
    assert "sampledマスクに効果があるかどうかは、シード1個では判断できません。" in page
    assert "この結果の意味" in page
    assert "15枚" in page
    text = re.sub(r"<style>.*?</style>|<pre>.*?</pre>|<[^>]+>", " ", page, flags=re.DOTALL)
    english = {"masks", "labels", "images", "encoder", "score", "training", "the", "of", "is"}
    assert english & set(re.findall(r"[a-z]+", text)) == set()
    assert main(["study", f"resume={folder}", "language=en"]) == 0
    assert "What this means" in (folder / "report.html").read_text()


def test_no_absolute_path_is_reported(finished, tmp_path):
    folder, _ = finished
    study = Study.read(folder)
    moved = replace(
        study,
        arguments=[*study.arguments, f"data.path={tmp_path}/tiles", f"arm.x=init={tmp_path}/old/run steps=3"],
        settings=[*study.settings, f"data.path='{tmp_path}/some tiles'"],
    )
    result = collect(moved, folder)
    write_report(result, folder)
    for text in (json.dumps(result), (folder / "report.html").read_text()):
        assert str(tmp_path) not in text
        assert str(folder) not in text
    assert result["study"]["arguments"][-2:] == ["data.path=tiles", "arm.x=init=run steps=3"]
    assert result["study"]["settings"][-1] == "data.path=some tiles"
