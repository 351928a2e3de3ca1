"""The guided levels train on text, and what is said of their masks and encoders is so."""

import csv
import json

import pytest
from claims import above, claims
from claims import trained as trained_recipe

from multilevel.__main__ import main
from multilevel.runs.training import new_engine

SHORT = ("recipe=guided_text", "steps=20")


@pytest.fixture(scope="module")
def trained():
    return trained_recipe(*SHORT, seed=0)


@claims(least_accuracy=above(0.7))
def pretraining(seed):
    return measured(trained_recipe(*SHORT, seed=seed))


def measured(recipe):
    """The smaller of the test accuracies with guided and with random masks."""
    scores = recipe.findings()["test_accuracy"]
    return {"least_accuracy": min(scores["guided masks"], scores["random masks"])}


def test_encoders_of_as_many_updates_with_either_masks_tell_the_classes(trained):
    (state, *_) = trained.graph.problems["pretrain"].optimizer.state.values()
    assert int(state["step"]) == trained.pretraining_updates == 160
    pretraining.hold(measured(trained))


def test_the_masking_network_is_scored_word_by_word(trained, monkeypatch):
    signal = trained.data.signal.float()
    monkeypatch.setattr(trained.settings, "evaluate", False)
    for sign, auc in ((1, 1.0), (-1, 0.0)):
        monkeypatch.setattr(trained, "masking", lambda words, sign=sign: sign * signal[words])
        found = trained.findings()
        assert found["signal_auc"] == auc
        assert found["signal_gap"] == pytest.approx(sign * 0.2310585786)  # sigmoid(1) - 1/2


def test_a_hypergradient_through_both_paths_reaches_the_masking_network(trained):
    assert trained.graph.passes("mask") == ("finetune", "pretrain")
    assert all(value.any() for value in new_engine(trained).hypergradient("mask").values())


def test_texts_of_ones_own(tmp_path, capsys):
    path, run = tmp_path / "own.csv", tmp_path / "run"
    with path.open("w", newline="") as file:
        rows = [("a cat sleeps", "pet"), ("rain, again and again and again", "weather")] * 20
        csv.writer(file).writerows([("text", "label"), *rows])
    own = [f"data.path={path}", "data.name=own", "data.length=5"]
    assert main(["train", "recipe=guided_text", *own, "steps=2", f"output={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["data"] == "own"
    assert "signal_auc" not in summary
    assert summary["test_accuracy"]["counts of words"] == 1
    assert "signal" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("mask.policy=block", "mask.policy: got 'block'; expected one of sampled, topk"),
        ("model.heads=5", "model.width: got 24; expected a multiple of model.heads=5"),
        ("mask.ratio=0.99", "mask.ratio: got 0.99; expected a share that hides at least one of 16"),
        ("data.path=none.csv", "none.csv'; expected a file that ends in"),
        ("data.lenght=5", "data.lenght: got '5'; expected a known setting, such as data.length"),
    ],
)
def test_wrong_settings_are_told_in_a_line(setting, expected, capsys):
    assert main(["train", "recipe=guided_text", setting]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1
