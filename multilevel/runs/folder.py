"""The run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multilevel.solvers import MultilevelError, SettingError

#: The meaning of settings that configurations of earlier versions do not have, where it is not the default any more.
EARLIER = {"data.near_copies": "keep", "data.mask_share": 0.2}
SKIPPED = "skipped"
NOTICE = "notice"


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
            MultilevelError: the file is broken.
        """
        try:
            config = OmegaConf.load(self.path / "config.yaml")
        except Exception as error:  # the parser raises errors of many kinds
            raise MultilevelError(
                f"{self.path / 'config.yaml'} cannot be read: {' '.join(str(error).split())}"
            ) from error
        assert isinstance(config, DictConfig)
        for setting, value in EARLIER.items():
            group, _, name = setting.rpartition(".")
            if "image_size" in (config.get(group) or {}) and name not in config[group]:
                config[group][name] = value
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

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the event log, one record per update; a last line that a killed run left half written is ignored."""
        return self.read_updates()[0]

    def read_updates(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """``read_metrics``, including skipped updates: step, level, and the reason under ``skipped``."""
        records = [record for record in _records(self.metrics) if NOTICE not in record]
        return [record for record in records if SKIPPED not in record], [
            record for record in records if SKIPPED in record
        ]

    def cut(self, step: int) -> None:
        """Delete the updates of ``step`` and later steps, and later diagnoses, which a resumed run repeats."""
        earlier = [record for record in _records(self.metrics) if record["step"] < step]
        self.write(self.metrics.name, _lines(earlier))
        if self.diagnosis.exists():
            self.write(
                self.diagnosis.name, _lines(record for record in _records(self.diagnosis) if record["step"] <= step)
            )


def write_whole(path: Path, text: str, encoding: str | None = None) -> Path:
    """Write a file completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding=encoding)
    os.replace(partial, path)
    return path


def _records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def check_free(path: Path) -> None:
    """Raise SettingError if ``path`` exists and is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SettingError("output", str(path), f"a new or empty folder; to continue a run: resume={path}")


def title(config: DictConfig) -> str:
    """The recipe and data of a configuration, for a folder's name."""
    data = OmegaConf.select(config, "data.name")
    return f"{config.recipe}-{data}" if data else str(config.recipe)


def now() -> str:
    """The current time, for a folder's name."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")
