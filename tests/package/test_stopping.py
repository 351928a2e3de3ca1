"""Signals and divergence: a run ends with a checkpoint, a status and a line that say so, and continues from there."""

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from waiting import wait_for

from multilevel.__main__ import main
from multilevel.study.command import plan
from multilevel.study.settings import StudySettings

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=200",
]  # fmt: skip


def start(folder, *arguments):
    command = [sys.executable, "-m", "multilevel", "train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )


def hear_interrupts():
    """A shell has what it starts in the background ignore SIGINT, and so would the run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


LONG = [*TINY, "steps=80", "checkpoint.every=1000", "evaluate=false"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *LONG, f"output={folder}"]) == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_the_run_goes_on_to_the_same_weights(tmp_path, whole, number):
    run = start(tmp_path, *LONG, "output=stopped")
    wait_for(run, tmp_path / "stopped" / "metrics.jsonl")
    run.send_signal(number)
    said = run.communicate()[1]
    assert run.returncode == 128 + number
    (checkpoint,) = (tmp_path / "stopped" / "checkpoint").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert 0 < step < 80
    name = signal.Signals(number).name
    assert f"stopped by {name} after step {step} of 80; multilevel train resume=stopped continues from there" in said
    assert main(["train", f"resume={tmp_path / 'stopped'}"]) == 0
    one, other = (
        load_file(folder / "checkpoint" / "step-80" / "weights.safetensors") for folder in (whole, tmp_path / "stopped")
    )
    assert all((one[key] == other[key]).all() for key in one)


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    """The first one is answered after a step, of which there is none to come: its updates take hours."""
    run = start(tmp_path, *TINY, "steps=2", "evaluate=false", "levels.pretrain.steps=1000000", "output=run")
    try:
        wait_for(run, tmp_path / "run" / "metrics.jsonl", lines=0)
        run.send_signal(signal.SIGTERM)
        while "SIGTERM: ending after this step" not in run.stderr.readline():
            assert run.poll() is None
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == -signal.SIGTERM
    finally:
        run.kill()


def test_nobody_listening_any_more_loses_nothing(tmp_path):
    run = start(tmp_path, *TINY, "steps=10000", "checkpoint.every=100000", "output=run")
    wait_for(run, tmp_path / "run" / "metrics.jsonl")
    run.stderr.close()
    run.send_signal(signal.SIGTERM)
    run.wait(60)
    assert list((tmp_path / "run" / "checkpoint").glob("step-*"))


def test_a_part_ends_its_step_when_its_study_is_gone(tmp_path):
    """Signalled by the group as well, as when a whole service is stopped: that is no second signal."""
    long = ["steps=1000", "levels.pretrain.steps=100"]  # so that both come within one step
    study = plan(StudySettings.parsed([*TINY, *long, "checkpoint.every=100000"]), [])
    (tmp_path / "runs").mkdir()
    study.write(tmp_path)
    command = [sys.executable, "-m", "multilevel.study.part", str(tmp_path), "sampled-seed0"]
    part = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(part, tmp_path / "runs" / "sampled-seed0" / "metrics.jsonl")
        part.send_signal(signal.SIGTERM)
        part.stdin.close()
        assert "stopped by SIGTERM after step" in part.stderr.read()
        assert part.wait(60) == 128 + signal.SIGTERM
    finally:
        part.kill()
    assert list((tmp_path / "runs" / "sampled-seed0" / "checkpoint").glob("step-*"))


def test_a_run_that_diverges_says_where_and_what_to_try(tmp_path, capsys):
    settings = ["levels.pretrain.learning_rate=1e30", "levels.pretrain.warmup=0", "max_skipped=3", "steps=40"]
    assert main(["train", *TINY, *settings, "mask.policy=random", f"output={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "update 1 of level pretrain skipped: the loss of level 'pretrain' is nan" in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("multilevel: 4 updates in a row of level 'pretrain' were skipped")
    assert "lower its learning rate" in last
    assert "checkpoint" in last
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("skipped" in one for one in records if one["level"] == "pretrain") == 4


def test_skipped_updates_are_counted_in_the_summary(tmp_path, monkeypatch, capsys):
    from multilevel.levels import MaskedPretrain

    updates = []
    criterion = MaskedPretrain.criterion

    def now_and_then(self, *arguments):
        loss, metrics = criterion(self, *arguments)
        updates.append(loss)
        return (loss * float("nan") if len(updates) in (3, 4, 9) else loss), metrics

    monkeypatch.setattr(MaskedPretrain, "criterion", now_and_then)
    assert main(["train", *TINY, "mask.policy=random", "steps=10", "evaluate=false", f"output={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name: level["skipped"] for name, level in summary["levels"].items()} == {"pretrain": 3, "finetune": 0}
    assert summary["levels"]["pretrain"]["updates"] == 17
    assert "updates skipped: 3" in capsys.readouterr().err


def test_a_run_without_a_single_update_has_a_summary(tmp_path, monkeypatch):
    from multilevel.levels import MaskedPretrain

    criterion, calls = MaskedPretrain.criterion, []

    def never(self, *arguments):
        loss, metrics = criterion(self, *arguments)
        calls.append(loss)
        return loss * (float("nan") if len(calls) > 1 else 1), metrics  # the first finds out what the level reads

    monkeypatch.setattr(MaskedPretrain, "criterion", never)
    given = ["mask.policy=random", "steps=4", "max_skipped=100", "evaluate=false", f"output={tmp_path / 'run'}"]
    assert main(["train", *TINY, *given]) == 0
    level = json.loads((tmp_path / "run" / "summary.json").read_text())["levels"]["pretrain"]
    assert (level["updates"], level["skipped"], level["last_loss"]) == (0, 8, None)


@pytest.mark.parametrize("arguments", [["recipes"], ["train", "--help"]])
def test_nobody_reading_the_output_is_no_error(arguments):
    command = subprocess.Popen(
        [sys.executable, "-m", "multilevel", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # what is printed waits in the buffer, as it does by default
    )
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait() == 128 + signal.SIGPIPE
