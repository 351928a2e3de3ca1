"""A run folder: one process trains in it, damage to its files costs as little as it can, strangers' files stay."""

import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from omegaconf import OmegaConf

from multilevel.__main__ import main
from multilevel.configuration.command_line import NoSettings, read
from multilevel.runs.folder import RunFolder, reserve
from multilevel.runs.lock import only_process
from multilevel.solvers import SettingError

FORK = multiprocessing.get_context("fork")
SMALL = ["recipe=regularization", "steps=4", "checkpoint.every=1"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *SMALL, f"output={folder}"]) == 0
    return folder


@pytest.fixture
def run(ended, tmp_path):
    """A run that was killed after step 4 of 6."""
    folder = shutil.copytree(ended, tmp_path / "run")
    (folder / "summary.json").unlink()
    config = OmegaConf.load(folder / "config.yaml")
    config.steps = 6
    OmegaConf.save(config, folder / "config.yaml")
    return folder


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def reserve_at(barrier, answers, path):
    barrier.wait()
    answers.put(reserve(path).name)


def test_runs_that_start_together_get_a_folder_each(tmp_path):
    barrier, answers = FORK.Barrier(4), FORK.Queue()
    processes = [FORK.Process(target=reserve_at, args=(barrier, answers, tmp_path / "run.1")) for _ in range(4)]
    for process in processes:
        process.start()
    assert sorted(answers.get() for _ in processes) == ["run.1", "run.1-2", "run.1-3", "run.1-4"]
    for process in processes:
        process.join()


def hold(path, ready):
    with only_process("output", path):
        ready.set()
        time.sleep(600)


def test_a_second_process_is_refused_until_the_first_ends_however_it_ends(run, capsys):
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(run, ready))
    process.start()
    ready.wait()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", f"resume={run}"]) == 2
    said = capsys.readouterr().err
    assert f"process {process.pid} on" in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert main(["train", f"resume={run}"]) == 0
    assert not (run / ".lock").exists()
    assert sorted(set(steps_of(run))) == list(range(6))


@pytest.mark.parametrize("byte", [b"\xff", b"}", b"\x00", b"\n"])
def test_a_damaged_byte_in_the_log_costs_its_line(run, capsys, byte):
    log = run / "metrics.jsonl"
    content = log.read_bytes()
    lines = content.splitlines(keepends=True)
    place = len(lines[0]) + 4  # in the name of the second line's first key
    damaged = content[:place] + byte + content[place + 1 :]
    log.write_bytes(damaged)
    assert main(["train", f"resume={run}"]) == 0
    assert "metrics-damaged.jsonl" in capsys.readouterr().err
    assert (run / "metrics-damaged.jsonl").read_bytes() == damaged
    kept = log.read_bytes().splitlines(keepends=True)
    assert kept[: len(lines) - 1] == [lines[0], *lines[2:]]
    assert (run / "summary.json").exists()


def test_strangers_files_beside_checkpoints_stay_and_the_run_goes_on(run):
    folder = run / "checkpoint"
    for name in ("step-1", "step-best", "step-4.old", ".step-2"):
        (folder / name).mkdir()
        (folder / name / "mine.txt").write_text("mine")
    (folder / "step-9").mkdir()
    for name in ("step-5", "step-6.tar.gz", "step-7"):  # step-5 is in the way of a checkpoint
        (folder / name).write_text("mine")
    (folder / "step-10").symlink_to("step-4")
    (folder / "step-4" / "notes.txt").write_text("mine")  # in one of the run's own, which is removed later
    (folder / "step-4.old" / "weights.safetensors").write_text("mine")
    before = {path for path in folder.rglob("*") if path.is_dir() or path.read_bytes() == b"mine"}
    assert main(["train", f"resume={run}"]) == 0
    assert {path for path in before if os.path.lexists(path)} == before - {folder / "step-3"}
    assert [path.read_text() for path in folder.rglob("*.txt")] == ["mine"] * 5
    written = {path.parent.name for path in folder.rglob("state.json") if not path.parent.is_symlink()}
    assert written == {"step-5.multilevel", "step-6"}
    assert sorted(set(steps_of(run))) == list(range(6))
    again = RunFolder(run)
    (run / "summary.json").unlink()
    assert main(["train", f"resume={again.path}"]) == 0


def test_checkpoints_follow_the_umask(ended):
    text = stat.S_IMODE((ended / "config.yaml").stat().st_mode)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (ended / "checkpoint" / "step-4").iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {text}


def test_a_checkpoint_without_digests_is_loaded_only_on_request(run, capsys):
    for path in (run / "checkpoint").rglob("digests.json"):
        path.unlink()
    assert main(["train", f"resume={run}"]) == 2
    said = capsys.readouterr().err
    assert "checkpoint.verify=false" in said
    assert said.count("\n") == 1
    assert main(["train", f"resume={run}", "checkpoint.verify=false"]) == 0


NEWER = ["newer: 3", "data: {newer: 1}", "recipe: newer", "steps: abc", "levels: 3", "checkpoint: {newer: {a: b}}"]
HOSTILE = ["a: " + "[" * 9999 + "]" * 9999, "a: &a [1]\nb: *a", "\x00", "- 1", "!!python/object:os.system {}", ""]


@pytest.mark.parametrize("text", NEWER + HOSTILE)
def test_settings_that_this_version_cannot_have_written_are_one_line(run, capsys, text):
    file = run / "config.yaml"
    if text in NEWER:
        OmegaConf.save(OmegaConf.merge(OmegaConf.load(file), {}), file)
        loaded = OmegaConf.to_container(OmegaConf.load(file))
        changes = OmegaConf.to_container(OmegaConf.create(text))
        for name, value in changes.items():
            nested = isinstance(value, dict) and isinstance(loaded.get(name), dict)
            loaded[name] = {**loaded[name], **value} if nested else value
        OmegaConf.save(OmegaConf.create(loaded), file)
    else:
        file.write_text(text)
    for command in (["train", f"resume={run}"], ["evaluate", str(run)], ["export", str(run)]):
        assert main([*command]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"multilevel: {file} ")
        assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "diagnosis.jsonl", "checkpoint/step-4/digests.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run, capsys, name):
    with suppress(FileNotFoundError):
        (run / name).unlink()
    os.mkfifo(run / name)
    assert main(["train", f"resume={run}"]) == (0 if "digests" in name else 2)
    assert "a pipe or a device, not a file" in "".join(capsys.readouterr())


@pytest.mark.parametrize("arguments", [["seed=1"], ["./seed=1"], ["seed=1", "steps=3"], ["steps=3", "a/seed=1"]])
def test_a_run_may_have_an_equals_sign_in_its_name(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    for name in ("seed=1", "a/seed=1"):
        (tmp_path / name).mkdir(parents=True)
    line = read("export", arguments, NoSettings, words=True)
    assert line.words == [argument for argument in arguments if "seed" in argument]
    assert line.overrides == [argument for argument in arguments if "steps" in argument]
    assert read("export", ["run", "seed=1"], NoSettings, words=True).overrides == ["seed=1"]


def test_a_hangup_ends_the_step_unless_it_is_ignored(run):
    config = OmegaConf.load(run / "config.yaml")
    config.steps = 100_000
    OmegaConf.save(config, run / "config.yaml")
    command = [sys.executable, "-m", "multilevel", "train", f"resume={run}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if "step 4" in line or "steps 4" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGHUP)
    assert "stopped by SIGHUP after step" in process.communicate()[1]
    assert process.returncode == 128 + signal.SIGHUP
    assert not (run / ".lock").exists()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="file"), only_process("output", tmp_path / "file"):
        pass
