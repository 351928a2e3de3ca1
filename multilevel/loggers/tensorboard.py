"""Logs to TensorBoard, into FOLDER/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multilevel.loggers.base import Logger
from multilevel.problems import Engine
from multilevel.solvers import SettingError


class TensorBoard(Logger):
    """``tensorboard --logdir runs`` shows all runs side by side.

    Raises:
        SettingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError("loggers", "tensorboard", "pip install tensorboard") from error
        self._new_writer = SummaryWriter

    def on_start(self, engine: Engine, steps: int) -> None:
        # hides what a killed run wrote after its last checkpoint
        self._writer = self._new_writer(str(self.folder / "tensorboard"), purge_step=engine.step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def on_end(self, engine: Engine) -> None:
        self._writer.close()
