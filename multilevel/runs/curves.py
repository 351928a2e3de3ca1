"""Plots every level's loss and metrics over the steps of the top level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from multilevel.recipes.pictures.figures import new_figure, save_figure

SMOOTHED_SHARE = 0.05  # share of the updates in the window of the smoothed line
FEWEST_TO_SMOOTH = 20


def draw_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw a row of panels for each level: its loss, then its metrics.

    Args:
        path: the PNG to write.
        records: the event log: objects with level, step, loss and metrics.
    """
    levels = list(dict.fromkeys(record["level"] for record in records))
    series = {level: _series([record for record in records if record["level"] == level]) for level in levels}
    columns = max((len(panels) - 1 for panels in series.values()), default=1)
    figure = new_figure(4.2 * columns, 2.6 * max(1, len(levels)))
    axes = figure.subplots(max(1, len(levels)), columns, squeeze=False, sharex=True)
    for row, (level, panels) in zip(axes, series.items(), strict=False):
        steps = panels.pop("step")
        for axis, (name, values) in zip(row, panels.items(), strict=False):
            _draw_panel(axis, steps, values)
            axis.set_title(f"{level}: {name}", fontsize=10)
        for axis in row[len(panels) :]:
            axis.set_visible(False)
        row[0].set_ylabel("loss")
    for axis in axes[-1]:
        axis.set_xlabel("step of the top level")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        axes[0, 0].legend(handles, labels, frameon=False, fontsize=8)
    save_figure(figure, path)


def _series(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Step, loss and each metric of one level, [N] each; the updates of a step are spread over it."""
    steps = np.array([record["step"] for record in records], dtype=float)
    _, first, counts = np.unique(steps, return_index=True, return_counts=True)
    position = np.arange(len(steps)) - np.repeat(first, counts)
    columns = {"step": steps + position / np.repeat(counts, counts), "loss": [record["loss"] for record in records]}
    metrics = dict.fromkeys(name for record in records for name in record["metrics"])
    columns |= {name: [record["metrics"].get(name) for record in records] for name in metrics}
    return {name: np.asarray(values, dtype=float) for name, values in columns.items()}  # None becomes nan


def _draw_panel(axis: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    smooth = len(values) >= FEWEST_TO_SMOOTH
    axis.plot(
        steps,
        values,
        color="#9db8d2" if smooth else "#1f5f99",
        linewidth=0.8 if smooth else 1.6,
        label="each update" if smooth else None,
    )
    if smooth:
        axis.plot(steps, moving_mean(values), color="#1f5f99", linewidth=1.6, label="moving mean")
    axis.grid(alpha=0.3)
    axis.margins(x=0.01)


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Means [N] over a window centred on each value and truncated at the ends; nan is ignored."""
    half = max(1, round(SMOOTHED_SHARE * len(values) / 2))
    window = np.ones(2 * half + 1)
    counts = np.convolve(np.isfinite(values), window)[half:-half]
    sums = np.convolve(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), window)[half:-half]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
