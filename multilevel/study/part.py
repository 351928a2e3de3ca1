"""Runs one part of a study in its own process: ``python -m multilevel.study.part STUDY PART``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from multilevel.configuration.composition import compose_config
from multilevel.runs.exit_status import exit_status
from multilevel.runs.folder import read_results
from multilevel.runs.stopping import stop_once
from multilevel.runs.training import resume, train
from multilevel.study.inspection import FILE, write_scores
from multilevel.study.plan import Study
from multilevel.study.transfer import write_transfer


def main(arguments: Sequence[str]) -> int:
    """Run a part to its end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, name = Path(arguments[0]), arguments[1]
    resumed = f"multilevel study resume={folder} continues from the last checkpoint"
    return exit_status(lambda: bring_to_its_end(folder, name), resumed)


def bring_to_its_end(folder: Path, name: str) -> None:
    """Skip a part that has a summary, continue one that has a checkpoint, start all others."""
    study = Study.read(folder)
    part, run = study.part(name), run_path(folder, name)
    torch.set_num_threads(study.threads)
    with FileLock(run.with_name(f".{name}.lock")):  # a part of a study resumed twice at once is trained once
        if not (run / "summary.json").exists():
            config = compose_config(study.overrides(part.arm, part.seed))
            if list((run / "checkpoint").glob("step-*")):
                resume(run, named_loggers=config.loggers)
            else:
                shutil.rmtree(run, ignore_errors=True)
                train(config, run)
        if study.transfer and not transfer_path(run).exists():
            write_transfer(run, study.transfer, transfer_path(run).name)
        if study.good is not None and not scores_path(run).exists():
            write_scores(run, study)


def run_path(folder: Path, name: str) -> Path:
    """The run folder of a part."""
    return folder / "runs" / name


def log_path(folder: Path, name: str) -> Path:
    """The log of a part, outside its run folder, which must be empty when a run starts."""
    return folder / "runs" / f"{name}.log"


def transfer_path(run: Path) -> Path:
    """The scores on the other data set."""
    return run / "transfer.json"


def scores_path(run: Path) -> Path:
    """The scores of images as defects."""
    return run / FILE


def is_done(study: Study, folder: Path, name: str) -> bool:
    run = run_path(folder, name)
    if not (run / "summary.json").exists() or evaluation_problem(run):
        return False
    if study.good is not None and not scores_path(run).exists():
        return False
    return not study.transfer or transfer_path(run).exists()


def evaluation_problem(run: Path) -> str | None:
    """Why the evaluation of an ended run failed; None if it succeeded or the run has not ended."""
    path = run / "summary.json"
    return read_results(path).get("evaluation_problem") if path.exists() else None


def start_part(folder: Path, name: str, threads: int) -> None:
    """Run a part in its own process to its end; its output goes into its log."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-m", "multilevel.study.part", str(folder), name]
    with log_path(folder, name).open("a") as log:
        # Nothing is written to the pipe: it closes when this process ends, for any reason.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        process.wait()


def _end_with_parent() -> None:
    """Stop this part, after its step and with a checkpoint, when the study that started it ends."""
    os.read(0, 1)
    stop_once()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
