"""The interface of loggers."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from multilevel.problems import Callback, Engine, Update


class Logger(Callback, ABC):
    """Writes the metrics of every step; your own logger only needs ``write``. If a logger fails, the run reports it and
    continues without it.

    Args:
        folder: the run's.
        config: all its settings, nested.

    Examples:
        >>> class Print(Logger):
        ...     def write(self, step, values):
        ...         print(step, values["mask/loss"])
        >>> Print(folder, {}).write(3, {"mask/loss": 0.5})
        3 0.5
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config
        self._values: dict[str, float] = {}
        self._failed = False

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the results of a step.

        Args:
            step: updates of the top level so far.
            values: from each level's last update in the step: ``LEVEL/loss``, ``LEVEL/gradient_norm``,
                ``LEVEL/METRIC``, and for a hypergradient ``LEVEL/cosine`` (to the previous one) and
                ``LEVEL/residual/LOWER`` of the solves.
        """

    def on_update(self, engine: Engine, update: Update) -> None:
        self._values |= update_values(update)

    def on_step(self, engine: Engine) -> None:
        if not self._failed:
            try:
                self.write(engine.step, self._values)
            except Exception as error:  # a lost server must not end the run
                self._failed = True
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                tqdm.write(f"step {engine.step}: {type(self).__name__} stopped logging: {reason}", file=sys.stderr)
        self._values = {}


def update_values(update: Update) -> dict[str, float]:
    """An update's metrics, under the names that ``Logger.write`` lists."""
    values: dict[str, float | None] = {
        "loss": update.loss,
        "gradient_norm": update.gradient_norm,
        "cosine": update.cosine,
        **update.metrics,
        **{f"residual/{lower}": report.residual for lower, report in update.solves.items()},
    }
    return {f"{update.level}/{name}": value for name, value in values.items() if value is not None}
