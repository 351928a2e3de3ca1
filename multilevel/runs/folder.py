"""The run folder."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multilevel.configuration.composition import typed_settings
from multilevel.recipes.base import recipe_class
from multilevel.recipes.plain_yaml import read_yaml
from multilevel.runs.lock import LOCK
from multilevel.runs.records import NOTICE, SKIPPED, Record, as_lines, is_update, read_records
from multilevel.solvers import MultilevelError, SettingError
from multilevel.solvers.files import parse_json, read_whole, write_whole

#: The meaning of settings that configurations of earlier versions do not have, where it is not the default any more.
EARLIER = {"data.near_copies": "keep", "data.mask_share": 0.2}


class RunFolder:
    """``config.yaml``, ``data.json``, ``metrics.jsonl``, ``summary.json``, ``checkpoint/`` and pictures, each written
    atomically.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.diagnosis = path / "diagnosis.jsonl"
        self.checkpoint = path / "checkpoint"
        self.data = path / "data.json"

    @classmethod
    def create(cls, path: Path, config: DictConfig, data: str | None = None) -> RunFolder:
        """Make a new run folder and write the run's configuration, and the record of its images if there is one.

        Raises:
            SettingError: the folder is not empty, or cannot be written.
        """
        check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
            if data is not None:
                folder.write(folder.data.name, data)
            folder.write("config.yaml", OmegaConf.to_yaml(config))
        except OSError as error:
            raise SettingError("output", str(path), f"a writable folder ({error.strerror})") from error
        return folder

    @classmethod
    def open(cls, setting: str, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
            SettingError: it is not a run folder; the message names ``setting``.
        """
        if not (path / "config.yaml").is_file():
            raise SettingError(setting, str(path), "a run folder that holds config.yaml")
        return cls(path)

    def config(self) -> DictConfig:
        """The run's configuration; settings that its version did not have yet get the meaning that they had.

        Raises:
            MultilevelError: the file is broken, or has settings that this version does not know.
        """
        config = read_yaml(self.path / "config.yaml")
        for setting, value in EARLIER.items():
            group, _, name = setting.rpartition(".")
            if "image_size" in (config.get(group) or {}) and name not in config[group]:
                config[group][name] = value
        if OmegaConf.is_dict(config.get("checkpoint")) and "verify" not in config.checkpoint:
            config.checkpoint.verify = True
        try:
            typed_settings(config, recipe_class(str(config.get("recipe"))).settings_class)
        except MultilevelError as error:
            raise MultilevelError(
                f"{self.path / 'config.yaml'} does not fit this version of multilevel, which may be older than the "
                f"one that wrote it: {error}"
            ) from error
        return config

    def config_with_division(self) -> DictConfig:
        """The run's configuration, with ``data.division`` set to the record of its images if there is one."""
        config = self.config()
        if self.data.exists():
            config.data.division = str(self.data)
        return config

    def write(self, name: str, text: str) -> Path:
        """Write a file completely or not at all."""
        return write_whole(self.path / name, text)

    def write_json(self, name: str, value: Any) -> Path:
        return self.write(name, json.dumps(value, indent=2) + "\n")

    def read_metrics(self) -> list[Record]:
        """Read the event log, one record per update; damaged lines are left out."""
        return self.read_updates()[0]

    def read_updates(self) -> tuple[list[Record], list[Record]]:
        """``read_metrics``, and the skipped updates: step, level, and the reason under ``skipped``."""
        records = [record for record in read_records(self.metrics)[0] if NOTICE not in record and is_update(record)]
        return [record for record in records if SKIPPED not in record], [
            record for record in records if SKIPPED in record
        ]

    def cut(self, step: int, levels: Collection[str | None] | None = None) -> list[str]:
        """Delete the updates of ``step`` and later steps, and later diagnoses, which a resumed run repeats.

        Args:
            step: the first step to delete.
            levels: the names of the run's levels.

        Returns:
            A line for each file with damaged lines, which are left out; the file as it was is kept beside it.
        """
        records, damaged = read_records(self.metrics)
        earlier = [record for record in records if record["step"] < step]
        intact = [record for record in earlier if is_update(record, levels)]
        said = self._kept(self.metrics, len(damaged) + len(earlier) - len(intact))
        self.write(self.metrics.name, as_lines(intact))
        if self.diagnosis.exists():
            records, damaged = read_records(self.diagnosis)
            said += self._kept(self.diagnosis, len(damaged))
            self.write(self.diagnosis.name, as_lines(record for record in records if record["step"] <= step))
        return said

    def _kept(self, path: Path, damaged: int) -> list[str]:
        """Copy a file with damaged lines to a new name, and say so."""
        if not damaged:
            return []
        copies = numbered(path.with_name(f"{path.stem}-damaged{path.suffix}"), path.suffix)
        copy = next(copy for copy in copies if not copy.exists())
        shutil.copyfile(path, copy)
        lines = "1 damaged line is" if damaged == 1 else f"{damaged} damaged lines are"
        return [f"{path}: {lines} left out; the file as it was is {copy.name}"]


def read_results(path: Path) -> Any:
    """The contents of a JSON file that a run wrote at its end.

    Raises:
        MultilevelError: it is damaged.
    """
    try:
        return parse_json(read_whole(path))
    except ValueError as error:
        raise MultilevelError(f"{path} is damaged ({error}): remove it, and resume to write it again") from error


def check_free(path: Path) -> None:
    """Raise SettingError if ``path`` exists and is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(entry.name != LOCK for entry in path.iterdir())):
        raise SettingError("output", str(path), f"a new or empty folder; to continue a run: resume={path}")


def numbered(path: Path, suffix: str = "") -> Iterator[Path]:
    """A path, and the same with -2, -3, ... before its suffix; the dots of a folder's name belong to it.

    >>> [path.name for path in itertools.islice(numbered(Path("run")), 3)]
    ['run', 'run-2', 'run-3']
    """
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")


def reserve(path: Path) -> Path:
    """Create a folder that did not exist: ``path``, or the same name with a number, since runs of two processes may
    start in one second.

    Raises:
        SettingError: it cannot be created.
    """
    for candidate in numbered(path):
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            continue
        except OSError as error:
            raise SettingError("output", str(path), f"a writable folder ({error.strerror})") from error
    raise AssertionError


def remove_empty(path: Path) -> None:
    """Remove a folder of ``reserve`` that has stayed empty, and then its parent if that is empty, too."""
    with suppress(OSError):
        path.rmdir()
        path.parent.rmdir()


def title(config: DictConfig) -> str:
    """The recipe and data of a configuration, for a folder's name."""
    data = OmegaConf.select(config, "data.name")
    return f"{config.recipe}-{data}" if data else str(config.recipe)


def now() -> str:
    """The current time, for a folder's name."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")
