"""Runs the parts of a study in parallel: as processes on this machine, or through a Hydra launcher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from multilevel.runs.safe_path import safe_path
from multilevel.runs.sweep import multirun
from multilevel.solvers import SettingError
from multilevel.study.part import start_part
from multilevel.study.plan import Study

PART_CONFIG = "study_part"
#: No list, reference, path or command: submitit's ``setup``, for example, is a list of shell commands.
_PLAIN = re.compile(r"hydra/launcher=\w+|hydra\.launcher\.[a-z]\w*=[\w.:+-]*")


def run_parts(study: Study, folder: Path, names: Sequence[str]) -> None:
    """Run the named parts to their ends; if one fails, the others continue."""
    if not names:
        return
    if study.launcher:
        _by_launcher(study, folder.resolve(), names)
        return
    with ThreadPoolExecutor(study.jobs) as pool:
        list(pool.map(lambda name: start_part(folder, name, study.threads), names))


def check_launcher(launcher: Sequence[str]) -> None:
    """Raise SettingError for a launcher that is not installed."""
    for override in launcher:
        setting, _, name = override.partition("=")
        if setting == "hydra/launcher":
            config = ConfigStore.instance()
            Plugins.instance().discover(Launcher)
            known = sorted(name.removesuffix(".yaml") for name in config.list("hydra/launcher"))
            if name not in known:
                expected = f"one of {', '.join(known)}; joblib needs: pip install multilevel[study]"
                raise SettingError(setting, name, expected)


def stored_launcher(launcher: Sequence[str]) -> list[str]:
    """The launcher that a study's file names, which may be a stranger's: a name and plain options.

    Raises:
        SettingError: anything else, which could run code of the study's folder.

    >>> stored_launcher(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
    ['hydra/launcher=joblib', 'hydra.launcher.n_jobs=2']
    """
    for override in launcher:
        if not _PLAIN.fullmatch(override):
            expected = "a launcher with plain options in study.yaml, or hydra/launcher=NAME on the command line"
            raise SettingError("resume", override, expected)
    return list(launcher)


def _by_launcher(study: Study, folder: Path, names: Sequence[str]) -> None:
    """Run a Hydra multirun over parts. Each job starts one part by its name and waits for it."""

    @hydra.main(config_path=None, config_name=PART_CONFIG, version_base="1.3")
    def job(config: DictConfig) -> None:
        start_part(folder, config.part, study.threads)

    ConfigStore.instance().store(name=PART_CONFIG, node={"part": "???"})
    jobs = [f"hydra.launcher.n_jobs={study.jobs}"] if "hydra/launcher=joblib" in study.launcher else []
    quoted = str(folder / "launcher").replace("'", "\\'")
    sweep = [f"part={','.join(names)}", f"hydra.sweep.dir='{quoted}'", "hydra.sweep.subdir=."]
    with safe_path():
        multirun("study", job, [*sweep, *jobs, *study.launcher])
