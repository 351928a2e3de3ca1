"""Commands that use a run's images again: they accept them at another place, and refuse others in one line."""

import json
import os
import shutil

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from multilevel.__main__ import main

SMALL = [
    "model.width=12", "model.heads=1", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=1",
    "model.decoder_depth=1", "data=folder", "data.image_size=8", "data.patch_size=2", "data.batch_size=4",
    "evaluation.references=false", "steps=2", "checkpoint.every=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images and a run on them."""
    root = tmp_path_factory.mktemp("trained")
    for label, name in enumerate(("bolt", "nut")):
        (root / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng([label, number]).integers(0, 150, (8, 8)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / name / f"{number:02d}.png")
    assert main(["train", *SMALL, f"data.path={root / 'images'}", f"output={root / 'run'}"]) == 0
    return root


@pytest.fixture
def place(trained, tmp_path):
    """A copy of both, which a test may change."""
    shutil.copytree(trained, tmp_path / "place")
    shutil.rmtree(tmp_path / "place" / "run" / "evaluation.json", ignore_errors=True)
    return tmp_path / "place"


def unfinished(run):
    """Make a run look as if it had been stopped before its last step."""
    config = OmegaConf.load(run / "config.yaml")
    config.steps = 3
    OmegaConf.save(config, run / "config.yaml")
    (run / "summary.json").unlink()


def commands(place, moved=()):
    run = place / "run"
    return {
        "export": ["export", str(run), *moved, "head=own", "references=false", f"output={place / 'export'}"],
        "evaluate": ["evaluate", str(run), *moved],
        "resume": ["train", f"resume={run}", *moved],
        "compare": ["compare", f"resume={run}", *moved, "solvers=identity", f"output={place / 'compare'}"],
    }


@pytest.mark.parametrize("command", ["export", "evaluate", "resume", "compare"])
def test_a_renamed_class_is_refused_and_nothing_is_lost(place, command, capsys):
    if command == "resume":
        unfinished(place / "run")
    (place / "images" / "bolt").rename(place / "images" / "zbolt")
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    moved = [f"data.path={place / 'images'}"]
    assert main(commands(place, moved)[command]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the run's class 'bolt' is missing and 'zbolt' is new" in error
    assert "data.changed=accept" in error
    assert before == {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    assert not (place / "export").exists()


@pytest.mark.parametrize("command", ["export", "evaluate", "resume", "compare"])
def test_images_at_another_place_are_the_same(place, command, capsys, monkeypatch):
    if command == "resume":
        unfinished(place / "run")
    (place / "images").rename(place / "moved")
    monkeypatch.chdir(place)
    assert main(commands(place, ["data.path=moved"])[command]) == 0
    if command == "export":
        labels = json.loads((place / "export" / "config.json").read_text())["id2label"]
        assert labels == {"0": "bolt", "1": "nut"}
        for text in (place / "export").glob("*.[jm]*"):
            assert str(place) not in text.read_text(errors="replace")


def test_changed_images_are_accepted_deliberately(place):
    (place / "images" / "bolt" / "00.png").unlink()
    moved = [f"data.path={place / 'images'}", "data.changed=accept"]
    for command in ("export", "evaluate"):
        assert main(commands(place, moved)[command]) == 0


def test_an_earlier_run_without_a_record_is_used_as_before(place, capsys):
    (place / "run" / "data.json").unlink()
    assert main(commands(place, [f"data.path={place / 'images'}"])["evaluate"]) == 0


def test_resuming_takes_no_other_setting(place, capsys):
    assert main(["train", f"resume={place / 'run'}", "data.limit=5"]) == 2
    assert "no other setting but data.path, data.unlabelled, data.changed" in capsys.readouterr().err


def test_the_stored_path_is_absolute(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(["train", *SMALL, "data.path=images", "evaluate=false", f"output={tmp_path / 'run'}"]) == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    assert main(["export", "run", "head=own", "references=false"]) == 0


@pytest.mark.parametrize(
    "change",
    [{"mean": ["a"]}, {"mean": [0.5, 0.5]}, {"labels": ["a"] * 40}, {"labels": [0]}, {"contents": []}, {"parts": 3}],
)
def test_a_record_with_values_that_no_run_writes_is_one_line(place, capsys, change):
    file = place / "run" / "data.json"
    record = json.loads(file.read_text())
    (record if "mean" in change else record["train"]).update(change)
    file.write_text(json.dumps(record))
    assert main(["evaluate", str(place / "run")]) == 2
    said = capsys.readouterr().err
    assert "data.json" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["data.json", "summary.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(place, capsys, name):
    (place / "run" / name).unlink()
    os.mkfifo(place / "run" / name)
    assert main(commands(place)["export"]) == 2
    assert "a pipe or a device, not a file" in capsys.readouterr().err
    assert not (place / "export").exists()


@pytest.mark.parametrize("summary", [[], 3, {}, {"levels": 3, "evaluation": []}, {"levels": {}, "evaluation": [1]}])
def test_a_summary_that_no_run_writes_is_one_line(place, capsys, summary):
    (place / "run" / "summary.json").write_text(json.dumps(summary))
    assert main(commands(place)["export"]) == 2
    assert "summary.json has contents that no run writes" in capsys.readouterr().err.splitlines()[-1]
    assert not (place / "export").exists()
