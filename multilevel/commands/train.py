"""The command ``multilevel train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multilevel.configuration.command_line import read
from multilevel.configuration.composition import compose_config
from multilevel.runs.distributed import joined, launched, led, restart, restarts
from multilevel.runs.sweep import sweep
from multilevel.runs.training import is_of, output_folder, resume, train
from multilevel.solvers import SettingError


@dataclass
class TrainSettings:
    """Settings of ``multilevel train`` beside those of the recipe.

    Args:
        resume: the folder of a run to go on with from its last checkpoint.
    """

    resume: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Train as the command line says; 0 when it has ended well."""
    with joined():
        start(arguments)
    return 0


def start(arguments: Sequence[str]) -> None:
    """A new run, one to go on with, or several."""
    overrides = [argument for argument in arguments if argument not in ("--multirun", "-m")]
    line = read("train", overrides, TrainSettings)
    resumed = line.settings.resume
    if len(overrides) < len(arguments):
        if launched():
            raise SettingError("--multirun", "torchrun", "one run with torchrun, or --multirun without it")
        sweep(overrides, train)
    elif resumed is None:
        config = compose_config(overrides)
        if restarts() and not config.output:
            raise SettingError("output", None, "a folder, with torchrun --max-restarts: a restart goes on in it")
        if restart() and is_of(Path(config.output), config):
            resume(Path(config.output))
        else:
            train(config, led(lambda: output_folder(config)))
    elif line.overrides:
        expected = "no other setting: a run goes on with those in its config.yaml"
        raise SettingError("resume", line.overrides[0], expected)
    else:
        resume(Path(resumed))
