"""What a logger is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multilevel.problems import Callback, Engine, Update


class Logger(Callback, ABC):
    """Writes the numbers of every step; ``write`` is all that one of your own needs.

    Args:
        folder: the run's.
        config: all its settings, nested.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config
        self._values: dict[str, float] = {}

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write what a step came to.

        Args:
            step: updates of the top level so far.
            values: of each level's last update in it: ``LEVEL/loss``, ``LEVEL/gradient_norm``, ``LEVEL/METRIC``, where
                there was a hypergradient ``LEVEL/cosine`` (to the last one) and ``LEVEL/residual/LOWER`` of the solves.
        """

    def on_update(self, engine: Engine, update: Update) -> None:
        self._values |= numbers(update)

    def on_step(self, engine: Engine) -> None:
        self.write(engine.step, self._values)
        self._values = {}


def numbers(update: Update) -> dict[str, float]:
    """An update's numbers, by the names that ``Logger.write`` lists."""
    found: dict[str, float | None] = {
        "loss": update.loss,
        "gradient_norm": update.gradient_norm,
        "cosine": update.cosine,
        **update.metrics,
        **{f"residual/{lower}": report.residual for lower, report in update.solves.items()},
    }
    return {f"{update.level}/{name}": value for name, value in found.items() if value is not None}
