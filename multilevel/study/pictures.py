"""Draws scores, differences and costs over seeds from study.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from multilevel.recipes.pictures.figures import GREY, INK, PALETTE, WIDEST, new_figure, save_figure, styled
from multilevel.reports.texts import Texts
from multilevel.runs.curves import moving_mean

DASHES = (0, (5, 1, 1, 1, 1, 1))
REFERENCES = {"untrained encoder": ":", "raw pixels": "--", "majority class": "-.", "supervised from scratch": DASHES}
TRAINED = "trained encoder"
ENGLISH = Texts("en")
LINES = ("-", ":")  # of curves of different images
Values = Mapping[Any, float]


def arm_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each arm; the first, the baseline, is grey."""
    return {name: GREY if index == 0 else PALETTE[(index - 1) % len(PALETTE)] for index, name in enumerate(names)}


@styled
def draw_scores(
    path: Path, arms: Mapping[str, Mapping[str, Any]], references: Values, label: str, texts: Texts = ENGLISH
) -> None:
    """Draw a dot for each seed, the mean and its 95% interval, for each arm.

    Args:
        path: the PNG to write.
        arms: ``{arm: {mean, interval, values}}``, shares of 1.
        references: values to draw as horizontal lines, such as the untrained encoder's mean.
        label: name of the score.
    """
    figure = new_figure(_width(len(arms)), 4.2)
    axis = figure.subplots()
    for position, (name, colour) in enumerate(arm_colours(list(arms)).items()):
        _draw_seeds(axis, position, arms[name], colour)
    for name, value in references.items():
        _reference(axis, name, value, texts)
    if references:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _finish(axis, list(arms), texts("study_axis_percent", score=label))
    _within_percent(axis)
    save_figure(figure, path)


@styled
def draw_differences(
    path: Path, comparisons: Sequence[Mapping[str, Any]], minimum_effect: float, label: str, texts: Texts = ENGLISH
) -> None:
    """Draw paired differences from the baseline: a dot for each seed, the mean and its 95% interval.

    Args:
        path: the PNG to write.
        comparisons: objects with arm, mean, interval and differences, shares of 1.
        minimum_effect: smaller differences are not worthwhile.
        label: name of the score and of the baseline.
    """
    figure = new_figure(_width(len(comparisons)), 4.2)
    axis = figure.subplots()
    axis.axhspan(0, 100 * minimum_effect, color="#f3e3c3", label=texts("study_legend_band"))
    axis.axhline(0, color=INK, linewidth=1)
    for position, comparison in enumerate(comparisons):
        score = {**comparison, "values": comparison["differences"]}
        _draw_seeds(axis, position, score, PALETTE[position % len(PALETTE)])
    axis.legend(loc="upper left", bbox_to_anchor=(0.0, 1.12))
    _finish(axis, [comparison["arm"] for comparison in comparisons], label)
    save_figure(figure, path)


@styled
def draw_costs(
    path: Path, seconds: Mapping[str, Sequence[float]], memory: Mapping[str, Sequence[float]], texts: Texts = ENGLISH
) -> None:
    """Draw training time and peak memory of each arm: bars for the mean, a dot for each seed.

    Args:
        path: the PNG to write.
        seconds: seconds of each seed.
        memory: MiB of each seed.
    """
    figure = new_figure(WIDEST, 3.8)
    axes = figure.subplots(1, 2)
    labels = texts("study_axis_time"), texts("study_axis_memory")
    for axis, label, costs in zip(axes, labels, (seconds, memory), strict=True):
        for position, (name, colour) in enumerate(arm_colours(list(costs)).items()):
            values = list(costs[name])
            axis.bar(position, np.mean(values), width=0.55, color=colour, alpha=0.45)
            axis.scatter(position + _spread(len(values)), values, s=14, color=colour, zorder=3)
        axis.set_ylim(bottom=0)
        _finish(axis, list(costs), label)
    save_figure(figure, path)


@styled
def draw_over(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]]],
    label: str,
    score: str,
    texts: Texts = ENGLISH,
) -> None:
    """Plot the score against a setting, a panel for each data set and a line for each arm, with 95% intervals.

    Args:
        path: the PNG to write.
        panels: ``{title: {arm: [(setting's value, {mean, interval}), ...]}}``.
        label: the setting; its axis is logarithmic if its values are above 0 and span more than a factor of 5.
        score: name of the score.
    """
    figure = new_figure(min(WIDEST, 5.6 * len(panels)), 4.0)
    for axis, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, colour in arm_colours(list(lines)).items():
            places = np.array([value for value, _ in lines[name]])
            means = np.array([100 * score["mean"] for _, score in lines[name]])
            ends = [score["interval"] or (np.nan, np.nan) for _, score in lines[name]]
            reach = np.abs(100 * np.array(ends, dtype=float).reshape(-1, 2).T - means)
            axis.errorbar(places, means, reach, color=colour, marker="o", markersize=5, capsize=4, label=name)
        values = sorted({value for line in lines.values() for value, _ in line})
        if values[0] > 0 and values[-1] > 5 * values[0]:
            axis.set_xscale("log")
        axis.set_xticks(values, [f"{value:g}" for value in values], minor=False)
        axis.minorticks_off()
        axis.set_title(title)
        axis.set_xlabel(label)
        axis.set_ylabel(texts("study_axis_percent", score=score))
        _within_percent(axis)
    handles = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside right upper")
    save_figure(figure, path)


@styled
def draw_over_time(
    path: Path,
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    ends: Mapping[str, Any],
    references: Values,
    label: str,
    texts: Texts = ENGLISH,
) -> None:
    """Draw training curves of one seed over seconds, and every seed's test score at the end of training.

    Args:
        path: the PNG to write.
        curves: ``{arm: {images: (seconds, metric)}}``, shares of 1, where images are the words for what they are of.
        ends: ``{arm: [(seconds, test score), ...]}``, one for each seed.
        references: values to draw as horizontal lines, such as the majority class's.
        label: name of the metric.
    """
    names = list(dict.fromkeys([*ends, *curves]))
    figure = new_figure(8.2, 4.2)
    axis = figure.subplots()
    colours = arm_colours(names)
    kinds = dict.fromkeys(images for own in curves.values() for images in own)
    styles: dict[str, Any] = dict(zip(kinds, LINES, strict=False))
    for name, colour in colours.items():
        for images, (seconds, values) in curves.get(name, {}).items():
            smooth = 100 * moving_mean(np.asarray(values, dtype=float))
            axis.plot(seconds, smooth, styles[images], color=colour, linewidth=1.3)
        if ends.get(name):
            seconds, scores = np.array(ends[name], dtype=float).T
            axis.scatter(seconds, 100 * scores, s=70, color=colour, marker="*", zorder=4)
    lines = [_reference(axis, name, value, texts) for name, value in references.items()]
    # One entry per colour and one per line style: one per combination would not fit next to the axes.
    legend = [Line2D([], [], color=colour, linewidth=4, label=name) for name, colour in colours.items()]
    legend += [Line2D([], [], color=INK, linestyle=style, label=images) for images, style in styles.items()]
    legend.append(Line2D([], [], color=INK, linestyle="", marker="*", markersize=9, label=texts("study_legend_end")))
    axis.set_xlabel(texts("study_axis_seconds"))
    axis.set_ylabel(texts("study_axis_percent", score=label))
    axis.legend(handles=[*legend, *lines], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save_figure(figure, path)


def _draw_seeds(axis: Axes, position: int, score: Mapping[str, Any], colour: str) -> None:
    values = 100 * np.array(list(score["values"].values()))
    axis.scatter(position + _spread(len(values)) - 0.12, values, s=20, color=colour, alpha=0.55, linewidth=0)
    mean, interval = 100 * score["mean"], score["interval"]
    reach = None if interval is None else [[mean - 100 * interval[0]], [100 * interval[1] - mean]]
    axis.errorbar(position + 0.12, mean, reach, fmt="D", color=colour, markersize=6, capsize=5, linewidth=1.8)


def _reference(axis: Axes, name: str, value: float, texts: Texts) -> Line2D:
    """Draw a share of 1 as a horizontal line."""
    label, style = texts.named("encoder", name), REFERENCES.get(name, ":")
    return axis.axhline(100 * value, color=GREY, linestyle=style, linewidth=1.1, label=label)


def _within_percent(axis: Axes) -> None:
    """Limit an axis to 0 to 100%; intervals over few seeds can exceed that range."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, -1), min(high, 101))


def _spread(count: int) -> np.ndarray:
    """Positions of the seeds side by side."""
    return np.linspace(-0.06, 0.06, count) if count > 1 else np.zeros(1)


def _width(count: int) -> float:
    return min(WIDEST, max(5.2, 1.5 * count + 2.0))


def _finish(axis: Axes, names: Sequence[str], label: str) -> None:
    slant: dict[str, Any] = {"rotation": 20, "ha": "right"} if len(names) > 3 else {}
    axis.set_xticks(range(len(names)), names, **slant)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_ylabel(label)
    axis.grid(False, axis="x")
