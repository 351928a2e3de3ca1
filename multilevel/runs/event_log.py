"""A callback that writes every update as a line of metrics.jsonl."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from torch.utils._pytree import tree_map_only

from multilevel.problems import Callback, Engine, Update


class EventLog(Callback):
    """Appends one JSON object per update: step, level, loss, metrics, gradient norm, solves, seconds so far. A skipped
    update has step, level, and the reason under ``skipped``; a notice has step, and its text under ``notice``.

    Args:
        path: the file; appended to.
        seconds: time that a resumed run took before.
    """

    def __init__(self, path: Path, seconds: float = 0.0) -> None:
        self.path = path
        self.seconds = seconds

    def on_start(self, engine: Engine, steps: int) -> None:
        self._file: TextIO = self.path.open("a")
        self._started = time.perf_counter() - self.seconds

    def on_update(self, engine: Engine, update: Update) -> None:
        self._write(asdict(update))

    def on_skip(self, engine: Engine, level: str, reason: str) -> None:
        self._write({"level": level, "step": engine.step, "skipped": reason})
        self._file.flush()  # it may end the run

    def on_notice(self, engine: Engine, notice: str) -> None:
        self._write({"step": engine.step, "notice": notice})

    def on_step(self, engine: Engine) -> None:
        self._file.flush()

    def on_end(self, engine: Engine) -> None:
        self.seconds = time.perf_counter() - self._started
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self.seconds = time.perf_counter() - self._started
        # JSON has no inf and nan: they become null
        finite = tree_map_only(float, lambda value: value if math.isfinite(value) else None, record)
        self._file.write(json.dumps({**finite, "seconds": round(self.seconds, 3)}) + "\n")
