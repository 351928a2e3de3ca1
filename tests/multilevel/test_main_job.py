"""The main job, word for word: what `make run` does once everything is installed."""

import json
from pathlib import Path

from multilevel.__main__ import main


def test_all_three_levels_learn_and_the_trained_encoder_beats_the_untrained_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 0
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["levels"]) == ["pretrain", "finetune", "mask"]
    for level in summary["levels"].values():
        assert level["last_loss"] < 0.7 * level["first_loss"]
        assert all(solves["failed"] == 0 for solves in level["solves"].values())
    scores = {}
    for one in summary["evaluation"]:
        scores.setdefault(one["encoder"], {})[one["protocol"]] = one["metrics"]["accuracy"]
    for protocol in ("linear_probe", "knn"):
        assert scores["trained encoder"][protocol] > scores["untrained encoder"][protocol] + 0.02
        assert f"{100 * scores['trained encoder'][protocol]:.1f}%" in said
    assert {"trained encoder", "untrained encoder", "raw pixels"} <= set(scores)
    for name in ("masks.png", "curves.png"):
        assert str(Path("runs") / folder.name / name) in said
