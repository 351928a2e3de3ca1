"""A collapsed masking network is reported: once on the screen, and in the summary."""

import json

import pytest
from PIL import Image

from multilevel.__main__ import main
from multilevel.problems import Update
from multilevel.runs.collapse import CollapseReport, find_collapse

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "evaluate=false",
]  # fmt: skip


class AtStep:
    def __init__(self, step):
        self.step = step


def updates(values):
    """The event log of pretraining updates with these overlaps, two a step, a mask update after them."""
    for index, value in enumerate(values):
        yield {"level": "pretrain", "step": index // 2, "metrics": {"excess_overlap": value}}
        if index % 2:
            yield {"level": "mask", "step": index // 2, "metrics": {"accuracy": 0.5}}


def test_the_rule_is_a_mean_over_fifty_updates():
    assert find_collapse(updates([1.0] * 49)) is None
    assert find_collapse(updates([0.79] * 200)) is None
    assert find_collapse([{"level": "pretrain", "step": 0, "metrics": {}}]) is None
    found = find_collapse(updates([0.0] * 100 + [1.0] * 60))
    assert found["step"] == (100 + 41 - 1) // 2  # 41 of 50 are more than 0.8
    assert found["excess_overlap"] == pytest.approx(0.82)
    assert found["at_the_end"] is True
    assert find_collapse(updates([1.0] * 60 + [0.0] * 60))["at_the_end"] is False


def test_the_screen_says_so_once(capsys):
    report = CollapseReport()
    for record in updates([0.0] * 20 + [1.0] * 100):
        report.on_update(AtStep(record["step"]), Update(record["level"], record["step"], 1.0, record["metrics"], 1.0))
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("step 30: the masking network has collapsed")  # 20 + 41 updates, two a step
    assert "mask.guidance" in said[0]


def test_a_run_whose_masks_are_all_the_same_says_so_and_a_sampled_one_is_silent(tmp_path, capsys):
    for label in ("one", "other"):  # the same image everywhere: topk hides the same patches
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(20):
            Image.new("L", (16, 16), 100).save(tmp_path / "images" / label / f"{index}.png")
    data = [
        "data=folder",
        f"data.path={tmp_path / 'images'}",
        "data.image_size=16",
        "data.channels=1",
        "data.batch_size=4",
    ]
    for policy in ("topk", "sampled"):
        settings = [*TINY, *data, "model.patch_size=4", "steps=26", "levels.mask.learning_rate=1e-9"]
        assert main(["train", *settings, f"mask.policy={policy}", f"output={tmp_path / policy}"]) == 0
        said = capsys.readouterr().err
        summary = json.loads((tmp_path / policy / "summary.json").read_text())
        overlap = summary["levels"]["pretrain"]["last_metrics"]["excess_overlap"]
        if policy == "topk":
            assert overlap > 0.95
            assert said.count("has collapsed") == 1
            assert summary["collapse"]["at_the_end"]
        else:
            assert abs(overlap) < 0.3
            assert "has collapsed" not in said
            assert summary["collapse"] is None
