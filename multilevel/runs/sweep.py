"""Several runs from one command: ``multilevel train --multirun``."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from multilevel.configuration.composition import (
    CONFIG_MODULE,
    expand,
    register_solvers,
    resolved,
    swept,
    users_files_read,
)
from multilevel.runs.folder import now, read_results, remove_empty, reserve
from multilevel.runs.stopping import Stopped
from multilevel.solvers import MultilevelError, SettingError

FAILURE = "failure.txt"  # in the folder of a run that failed
BEST = "optimization_results.yaml"  # left by an optimizing sweeper


@users_files_read()
def sweep(overrides: Sequence[str], train: Callable[[DictConfig, Path], None]) -> None:
    """Run each combination of the values that overrides list, or each that a sweeper chooses, through Hydra's multirun,
    launchers and sweepers.

    Args:
        overrides: overrides from the command line.
        train: trains one run from its settings in its folder.

    Raises:
        MultilevelError: a run failed; the others ran to their ends.
        Stopped: a signal ended a run early.
    """
    expanded = expand(overrides)
    folders = [override.partition("=")[2] for override in expanded if override.startswith("hydra.sweep.dir=")]
    if folders and "${" in folders[-1]:
        raise SettingError("hydra.sweep.dir", folders[-1], "a plain folder name, without an interpolation")
    if any(override.startswith(("output=", "resume=")) for override in expanded):
        raise SettingError("output", "a value with --multirun", "hydra.sweep.dir=FOLDER instead")
    folder = folders[-1] if folders else str(reserve(Path(f"runs/sweep-{now()}")))

    @hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name="config", version_base="1.3")
    def job(config: DictConfig) -> float:
        output = Path(HydraConfig.get().runtime.output_dir)
        try:
            train(resolved(config), output)
            return objective(read_results(output / "summary.json"), config.objective)
        except MultilevelError as error:  # the other runs continue; this may be another process or another machine
            (output / FAILURE).write_text(f"{', '.join(HydraConfig.get().overrides.task)}: {error}")
            return math.inf
        except Stopped as stop:
            raise Stopped(f"{stop}; later runs were not started", stop.status) from stop

    register_solvers()
    swept_names = swept(expanded)
    constant = ",".join(
        override.partition("=")[0] for override in expanded if override.partition("=")[0] not in swept_names
    )
    naming = [
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
        f"hydra.job.config.override_dirname.exclude_keys=[{constant}]",
    ]
    try:
        multirun("train", job, [*naming, *expanded, f"hydra.sweep.dir={folder}"])
    except Stopped as stop:
        failed = failures(Path(folder))
        earlier = f"; {len(failed)} before it failed, the first with {failed[0]}" if failed else ""
        raise Stopped(f"{stop}{earlier}", stop.status) from stop
    finally:
        remove_empty(Path(folder))
    if (Path(folder) / BEST).exists():
        print((Path(folder) / BEST).read_text().strip())
    failed = failures(Path(folder))
    if failed:
        raise MultilevelError(f"{len(failed)} of the runs failed; the first with {failed[0]}")


def multirun(command: str, job: Callable[[], Any], overrides: Sequence[str]) -> None:
    """Hydra's multirun of a command's job, a function that ``hydra.main`` has decorated."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main, which puts them in a line
    quiet = ["hydra.output_subdir=null", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    arguments, sys.argv = sys.argv, [f"multilevel {command}", "--multirun", *quiet, *overrides]
    try:
        job()
    finally:
        sys.argv = arguments


def objective(summary: dict[str, Any], path: str | None) -> float:
    """A sweeper's objective: a number in the run's summary, by its path; None takes the top level's last loss.

    Raises:
        SettingError: the summary has no such number.
    """
    value: Any = summary
    top = list(summary["levels"])[-1]
    if path is None and summary["levels"][top]["last_loss"] is None:
        return math.inf  # every update of it was skipped
    for key in (path or f"levels.{top}.last_loss").split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        raise SettingError("objective", path, "the path of a number in summary.json, such as levels.mask.last_loss")
    return float(value)


def failures(folder: Path) -> list[str]:
    """The errors of a sweep's failed runs, in the order of their settings."""
    return [path.read_text() for path in sorted(folder.rglob(FAILURE))]  # a value with a slash makes nested folders
