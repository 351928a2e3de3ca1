"""multilevel compare replay=N,..., run as users run it, on a small model."""

import json

import pytest

from multilevel.__main__ import main
from multilevel.problems import Replay
from multilevel.problems.replay import RANDOM

SMALL = [
    "data.limit=200", "data.batch_size=16", "model.width=8", "model.depth=1", "model.heads=2", "model.decoder_width=8",
    "model.decoder_depth=1", "model.decoder_heads=2",
]  # fmt: skip
ASKED = ["solvers=identity,unrolled,unrolled_forward", "unrolled.outer_steps=2", "rounds=1", "iterations=1"]
REPLAY = ["replay=1,2", "replay_steps=2", "replay_seeds=2", "replay_held_out=1"]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "out"
    assert main(["compare", *SMALL, *ASKED, *REPLAY, "warmup=2", "evaluate=true", f"output={folder}"]) == 0
    return folder, Replay.of(json.loads((folder / "compare.json").read_text())["replay"])


def test_every_solver_is_replayed_at_every_horizon_with_both_draws_and_measures(replayed):
    folder, replay = replayed
    assert (folder / "replay.png").stat().st_size > 10_000
    assert {(row.solver, row.outer_steps, row.draws, row.measure) for row in replay.rows} == {
        (solver, count, draws, measure)
        for solver in ("identity", "unrolled(outer_steps=2)", RANDOM)
        for count in (1, 2)
        for draws in ("held", "renewed")
        for measure in ("loss", "probe loss")
    }
    assert all(len(half.measured) == len(half.halved) == 2 for row in replay.rows for half in row.halves)


def test_solvers_predict_the_slope_of_the_loss_alone(replayed):
    """Their values are checked in float64, by test_replay_experiment.py and test_replay_planted.py."""
    _, replay = replayed
    for row in replay.rows:
        predicts = row.measure == "loss" and row.solver != RANDOM
        assert [len(half.predicted) for half in row.halves] == [2 * predicts] * 2


def test_solvers_that_fail_are_named(replayed):
    _, replay = replayed
    assert not any(row.solver.startswith("unrolled_forward") for row in replay.rows)
    assert replay.problems["unrolled_forward"].startswith("solver.limit: got 100; expected at least")


def test_a_comparison_without_a_solver_to_replay_is_kept(tmp_path, capsys):
    solver = ["solvers=identity", "precisions=float32", "rounds=1", "iterations=1"]
    assert main(["compare", *SMALL, *solver, *REPLAY, "warmup=1", f"output={tmp_path / 'out'}"]) == 0
    assert "not replayed: precisions= and shares= concern single solves" in capsys.readouterr().out
    assert (tmp_path / "out" / "compare.json").exists()


def test_options_of_a_solver_are_read_together(tmp_path, capsys):
    solver = ["solvers=identity", "identity.outer_steps=4", "identity.scale=null", "rounds=1", "iterations=1"]
    assert main(["compare", *SMALL, *solver, "warmup=1", f"output={tmp_path / 'out'}"]) == 0
    assert "identity(outer_steps=4, scale=null)" in capsys.readouterr().out
    assert main(["compare", *SMALL, "solvers=identity", "identity.outer_steps=4", f"output={tmp_path / 'no'}"]) == 2
    assert "identity.outer_steps: got 4; expected 1, or solver.scale=null with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["replay=1", "replay_steps=3"], "replay_steps: got 3; expected an even number"),
        (["replay=0"], "replay: got 0"),
        (["evaluate=true"], "evaluate: got True; expected replay=N,... with it"),
        (
            ["recipe=hyper_cleaning", "replay=1", "evaluate=true"],
            "evaluate: got True; expected false: the recipe",
        ),
    ],
)
def test_unusable_settings(settings, message, capsys, tmp_path):
    point = ["solvers=identity", "warmup=1", "rounds=1", "iterations=1", f"output={tmp_path / 'out'}"]
    assert main(["compare", *settings, *point]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_end_of_a_cosine_schedule_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *SMALL, "steps=2", "levels.finetune.schedule=cosine", "evaluate=false", f"output={run}"]) == 0
    asked = ["solvers=identity", "rounds=1", "iterations=1", "warmup=0", *REPLAY]
    assert main(["compare", f"resume={run}", *asked, f"output={tmp_path / 'out'}"]) == 2
    assert "learning rates of the levels below are 0" in capsys.readouterr().err
