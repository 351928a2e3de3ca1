"""The command ``multilevel train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multilevel.configuration.composition import compose_config
from multilevel.runs.distributed import joined, launched, led, restart, restarts
from multilevel.runs.sweep import sweep
from multilevel.runs.training import is_of, output_folder, resume, train
from multilevel.solvers import SettingError


def main(arguments: Sequence[str]) -> int:
    """Train as the command line says; 0 when it has ended well."""
    with joined():
        start(arguments)
    return 0


def start(arguments: Sequence[str]) -> None:
    """A new run, one to go on with, or several."""
    overrides = [argument for argument in arguments if argument not in ("--multirun", "-m")]
    resumed = [argument.partition("=")[2] for argument in overrides if argument.startswith("resume=")]
    if len(overrides) < len(arguments):
        if launched():
            raise SettingError("--multirun", "torchrun", "one run with torchrun, or --multirun without it")
        sweep(overrides, train)
    elif not resumed:
        config = compose_config(overrides)
        if restarts() and not config.output:
            raise SettingError("output", None, "a folder, with torchrun --max-restarts: a restart goes on in it")
        if restart() and is_of(Path(config.output), config):
            resume(Path(config.output))
        else:
            train(config, led(lambda: output_folder(config)))
    elif len(overrides) > 1:
        other = next(argument for argument in overrides if not argument.startswith("resume="))
        raise SettingError("resume", other, "no other setting: a run goes on with those in its config.yaml")
    else:
        resume(Path(resumed[0]))
