"""Detects a masking network that has collapsed to one mask for all images; prints one line, and adds it to the
summary."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from tqdm import tqdm

from multilevel.problems import Callback, Engine, Update

METRIC = "excess_overlap"  # see ``mask_statistics``: 0 if masks are random, 1 if all are the same
WINDOW = 50  # updates
LIMIT = 0.8
RULE = f"the mean {METRIC} of {WINDOW} updates is above {LIMIT}"
ADVICE = (
    "mask.policy=sampled, mask.weights=normalized, a mask.guidance below 1, a higher mask.temperature, "
    "mask.entropy_bonus, or a lower levels.mask.learning_rate"
)


class Window:
    """The last ``WINDOW`` values of the metric."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, metrics: Mapping[str, float]) -> float | None:
        """Add an update's metrics. Returns the window's mean if it is above the limit, else None."""
        if METRIC not in metrics:
            return None
        self._values.append(metrics[METRIC])
        mean = fmean(self._values)
        return mean if len(self._values) == WINDOW and mean > LIMIT else None


class CollapseReport(Callback):
    """Reports once that the masking network has collapsed, and which settings to change."""

    def __init__(self) -> None:
        self._window = Window()
        self._reported = False

    def on_update(self, engine: Engine, update: Update) -> None:
        mean = self._window.add(update.metrics)
        if mean is not None and not self._reported:
            self._reported = True
            tqdm.write(f"step {engine.step}: {collapse_message(mean)}", file=sys.stderr)


def find_collapse(records: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Find the first step of an event log at which the masking network had collapsed; None if it never had.

    Returns:
        ``step``, ``excess_overlap`` at that step (mean over the window), ``at_the_end`` (whether it was still collapsed
        then), and the ``rule`` and ``advice`` in words.
    """
    window, collapse, mean = Window(), None, None
    for record in records:
        mean = window.add(record["metrics"]) if METRIC in record["metrics"] else mean
        if mean is not None and collapse is None:
            collapse = {"step": record["step"], METRIC: mean, "rule": RULE, "advice": ADVICE}
    return None if collapse is None else {**collapse, "at_the_end": mean is not None}


def collapse_message(mean: float) -> str:
    return (
        f"the masking network has collapsed: nearly the same patches are hidden in all images (excess overlap "
        f"{mean:.2f} of 1); try {ADVICE}"
    )
