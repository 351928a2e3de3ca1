"""torchrun: several ranks train as one run, stop, resume on another number of ranks, and survive the loss of one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from waiting import wait_for

from multilevel.__main__ import main
from multilevel.runs.distributed import own_gpu
from multilevel.runs.stopping import StopOnSignal

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=200", "evaluation.max_images=100",
]  # fmt: skip


def start(folder, *arguments, restarts=0):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, f"--max-restarts={restarts}", "-m", "multilevel", "train", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


def steps_of(folder):
    """The steps of the event log's updates of the top level, in the order in which they were written."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if record["level"] == "mask"]


@pytest.mark.parametrize("signalled", ["torchrun", "one rank"])
def test_a_run_of_two_ranks_stops_and_goes_on_with_one(tmp_path, signalled):
    run = start(tmp_path, *TINY, "steps=60", "checkpoint.every=1000", "evaluate=false", "output=run")
    wait_for(run, tmp_path / "run" / "metrics.jsonl", lines=20)
    os.kill(run.pid if signalled == "torchrun" else worker_of(run.pid, rank=1), signal.SIGTERM)
    said = run.communicate()[1]
    assert run.returncode != 0
    (checkpoint,) = (tmp_path / "run" / "checkpoint").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert 0 < step < 60
    assert said.count(f"stopped by SIGTERM after step {step} of 60") == 1
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert steps_of(tmp_path / "run") == list(range(60))


def test_a_lost_rank_is_started_again_and_the_run_ends_well(tmp_path):
    settings = [*TINY, "steps=40", "checkpoint.every=5", "evaluation.protocols=[knn]", "output=run"]
    run = start(tmp_path, *settings, restarts=1)
    wait_for(run, tmp_path / "run" / "metrics.jsonl", lines=40)
    os.kill(worker_of(run.pid, rank=1), signal.SIGKILL)
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert "rank 0 has lost the other ranks" in said
    assert "run: resumed at step" in said
    assert steps_of(tmp_path / "run") == list(range(40))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {score["encoder"] for score in summary["evaluation"]} >= {"trained encoder", "raw pixels"}


def worker_of(parent, rank):
    """The process of a rank."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status, environment = (process / "status").read_text(), (process / "environ").read_bytes()
        except OSError:  # gone
            continue
        if f"PPid:\t{parent}\n" in status and f"\0LOCAL_RANK={rank}\0".encode() in environment:
            return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


def test_what_is_wrong_is_said_once(tmp_path):
    run = start(tmp_path, *TINY, "data.batch_size=15", "output=run")
    said = run.communicate()[1]
    assert run.returncode != 0
    assert said.count("data.batch_size: got 15; expected a multiple of the number of ranks, 2") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["study", "steps=0"], "torchrun works only with multilevel train; run multilevel study without it"),
        (["compare", "steps=0"], "torchrun works only with multilevel train; run multilevel compare without it"),
    ],
)
def test_other_commands_are_not_for_several_ranks(command, said, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert said in capsys.readouterr().err


def test_restarts_need_a_folder_to_go_on_in(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main(["train", *TINY, "steps=0"]) == 2
    assert "output: got None; expected a folder, with torchrun --max-restarts" in capsys.readouterr().err


def test_a_restart_goes_on_with_no_other_run(tmp_path, monkeypatch, capsys):
    settings = [*TINY, "steps=2", "evaluate=false", f"output={tmp_path / 'run'}"]
    assert main(["train", *settings]) == 0
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["train", *settings, "seed=7"]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert main(["train", *settings]) == 0
    assert "has ended" in capsys.readouterr().out


def test_a_signal_that_torchrun_passes_on_is_no_second_one(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopOnSignal(SimpleNamespace(stop=lambda: None)) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number == signal.SIGTERM


@pytest.mark.parametrize(
    ("visible", "rank", "own"), [(None, 1, "1"), ("4,6", 1, "6"), ("4,6", 2, ""), ("", 0, ""), ("GPU-a", 0, "GPU-a")]
)
def test_each_rank_takes_the_gpu_of_its_place(visible, rank, own):
    environment = {"LOCAL_RANK": str(rank)} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert own_gpu(environment) == own
