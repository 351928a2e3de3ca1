"""Plots every level's loss and metrics over the steps of the top level."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from multilevel.recipes.base import Recipe
from multilevel.recipes.pictures.figures import GREY, WIDEST, new_figure, save_figure, styled

SMOOTHED_SHARE = 0.05  # share of the updates in the window of the smoothed line
FEWEST_TO_SMOOTH = 20
COLUMNS = 2
ROW_HEIGHT = 2.9  # inches
MINIMIZED = "the loss that is minimized"
Member = tuple[str, str]  # a level and one of its metrics, or "loss"


@dataclass(frozen=True)
class CurveLabels:
    """Facts about levels that the event log does not hold. Without them, levels go by their names.

    Attributes:
        titles: words for levels, by name.
        panels: for levels, by name: the metrics to plot on the same axes, see ``Problem.panels``.
        held_out_from: see ``Recipe.held_out_from``.
        majority: the accuracy of always answering with the most frequent class, 0 to 1, where known.
    """

    titles: Mapping[str, str] = field(default_factory=dict)
    panels: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    held_out_from: Mapping[str, str] = field(default_factory=dict)
    majority: float | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> CurveLabels:
        """Collect them from a recipe and its levels."""
        problems, counts = recipe.graph.problems, recipe.class_counts
        titles = {name: problem.title for name, problem in problems.items() if problem.title}
        panels = {name: problem.panels for name, problem in problems.items()}
        return cls(titles, panels, recipe.held_out_from, max(counts) / sum(counts) if counts else None)

    def title(self, level: str) -> str:
        return self.titles.get(level) or words(level)


@dataclass(frozen=True)
class Panel:
    """Lines to draw on the same axes.

    Attributes:
        title: the title of the axes.
        lines: steps and finite values, float64 [N] each with N above 0, by their label.
        majority: where to draw the majority class, if anywhere.
    """

    title: str
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]]
    majority: float | None


def words(name: str) -> str:
    """A name in words.

    Examples:
        >>> words("entropy_over_patches")
        'entropy over patches'
    """
    return name.replace("_", " ")


def curve_panels(records: Sequence[Mapping[str, Any]], labels: CurveLabels) -> list[Panel]:
    """The panels of a run: none is empty, and a level on held-out data shares those of the level it is held out from.

    Args:
        records: the event log: objects with level, step, loss and metrics.
        labels: what the log does not say.
    """
    by_level: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_level[record["level"]].append(record)
    series = {level: _series(own) for level, own in by_level.items()}
    guests = {level: host for level, host in labels.held_out_from.items() if host in series}
    panels: list[Panel] = []
    for level in series:
        if level not in guests:
            group = [level, *(guest for guest, host in guests.items() if host == level and guest in series)]
            panels += _panels_of(group, series, labels)
    return panels


def _panels_of(group: Sequence[str], series: Mapping[str, Any], labels: CurveLabels) -> Iterator[Panel]:
    """The panels of a level, the first of the group, and of those on data held out from it."""
    contents: dict[str, list[Member]] = defaultdict(list)
    for level in group:
        title_of = {name: title for title, names in labels.panels.get(level, {}).items() for name in names}
        for name in series[level]:
            contents[title_of.get(name, words(name))].append((level, name))
    for title, members in contents.items():
        lines = {_line_label(group[0], member, members, labels): series[member[0]][member[1]] for member in members}
        accuracy = any(name == "accuracy" for _, name in members)
        owner = labels.title(members[0][0])
        yield Panel(title if title == owner else f"{owner}: {title}", lines, labels.majority if accuracy else None)


def _line_label(host: str, member: Member, members: Sequence[Member], labels: CurveLabels) -> str:
    """The label of a level's metric among those on the same axes, whose host is not on held-out data."""
    level, name = member
    parts = []
    if level != host or any(other != host for other, _ in members):
        parts.append(f"{labels.title(level)}, {'training' if level == host else 'held-out'} data")
    if not parts or any(other != name for _, other in members):
        parts.append(MINIMIZED if name == "loss" else words(name))
    return ": ".join(parts)


@styled
def draw_curves(path: Path, records: Sequence[Mapping[str, Any]], labels: CurveLabels | None = None) -> None:
    """Draw the panels of a run, in rows that fit a screen.

    Args:
        path: the PNG to write.
        records: the event log: objects with level, step, loss and metrics.
        labels: what the log does not say.
    """
    panels = curve_panels(records, labels or CurveLabels())
    columns = min(COLUMNS, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = new_figure(WIDEST * columns / COLUMNS, ROW_HEIGHT * rows + 0.3)
    grid = figure.add_gridspec(rows, columns)
    shared = None
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        last = index == len(panels) - 1
        axis = shared = figure.add_subplot(grid[row, column:] if last else grid[row, column], sharex=shared)
        _draw_panel(axis, panel)
    smoothed = any(len(values) >= FEWEST_TO_SMOOTH for panel in panels for _, values in panel.lines.values())
    note = f" (pale: every update; bold: the mean over {SMOOTHED_SHARE:.0%} of them)" if smoothed else ""
    figure.supxlabel(f"step of the top level{note}" if panels else "no update was made", fontsize=10)
    save_figure(figure, path)


def _series(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values, without those that are missing, of one level's loss and each of its metrics that has any; the
    updates of a step are spread over it."""
    steps = np.array([record["step"] for record in records], dtype=float)
    _, first, counts = np.unique(steps, return_index=True, return_counts=True)
    position = np.arange(len(steps)) - np.repeat(first, counts)
    steps += position / np.repeat(counts, counts)
    metrics = dict.fromkeys(name for record in records for name in record["metrics"])
    columns = {"loss": [record["loss"] for record in records]}
    columns |= {name: [record["metrics"].get(name) for record in records] for name in metrics}
    series = {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=float)  # None becomes nan
        finite = np.isfinite(values)
        if finite.any():
            series[name] = (steps[finite], values[finite])
    return series


def _draw_panel(axis: Axes, panel: Panel) -> None:
    for index, (label, (steps, values)) in enumerate(panel.lines.items()):
        colour, smooth = f"C{index}", len(values) >= FEWEST_TO_SMOOTH
        marker = "o" if len(values) == 1 else ""
        axis.plot(steps, moving_mean(values) if smooth else values, color=colour, marker=marker, label=label, zorder=3)
        if smooth:
            axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    if panel.majority is not None:
        axis.axhline(panel.majority, color=GREY, linestyle="--", label=f"majority class, {panel.majority:.3g}")
    axis.set_title(panel.title)
    axis.margins(x=0.01)
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend()


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Means [N] over a window centred on each value and truncated at the ends; nan is ignored."""
    half = max(1, round(SMOOTHED_SHARE * len(values) / 2))
    window = np.ones(2 * half + 1)
    counts = np.convolve(np.isfinite(values), window)[half:-half]
    sums = np.convolve(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), window)[half:-half]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
