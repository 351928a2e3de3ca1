"""The main job, word for word: what `make run` does once everything is installed."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from claims import above, below, claims

from multilevel.__main__ import main


@claims(loss_ratio=below(1), gain_by_linear_probe=above(0), gain_by_knn=above(0.02))
def main_job(seed):
    with TemporaryDirectory() as folder:
        assert main(["train", f"seed={seed}", f"output={folder}/run"]) == 0
        return measured(json.loads((Path(folder) / "run" / "summary.json").read_text()))


def measured(summary):
    """The largest ratio of a level's last loss to its first; gains of the trained encoder over the untrained one."""
    scores = accuracies(summary)
    gains = {
        name: scores["trained encoder"][name] - scores["untrained encoder"][name] for name in ("linear_probe", "knn")
    }
    ratio = max(level["last_loss"] / level["first_loss"] for level in summary["levels"].values())
    return {"loss_ratio": ratio, **{f"gain_by_{name}": gain for name, gain in gains.items()}}


def accuracies(summary):
    """{encoder: {protocol: accuracy}}"""
    scores = {}
    for one in summary["evaluation"]:
        scores.setdefault(one["encoder"], {})[one["protocol"]] = one["metrics"]["accuracy"]
    return scores


def test_all_three_levels_learn_and_the_trained_encoder_beats_the_untrained_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 0
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["levels"]) == ["pretrain", "finetune", "mask"]
    for level in summary["levels"].values():
        assert all(solves["failed"] == 0 for solves in level["solves"].values())
    main_job.hold(measured(summary))
    scores = accuracies(summary)
    for protocol in ("linear_probe", "knn"):
        assert f"{100 * scores['trained encoder'][protocol]:.1f}%" in said
    assert {"trained encoder", "untrained encoder", "raw pixels"} <= set(scores)
    for name in ("masks.png", "curves.png"):
        assert str(Path("runs") / folder.name / name) in said
