"""Draws error against memory and time, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import Bbox

from multilevel.compare.table import points_against
from multilevel.recipes.pictures.figures import GREY, VERMILLION, WIDEST, new_figure, save_figure, styled

SMALLEST_ERROR = 1e-16
MARKER_SIZE, LABEL_SIZE = 6, 8  # points
NEAR = 16  # places next to a marker, whose labels need no line to it
#: Where a label may go, float64 [N, 2] in points from its marker: on rings, the nearest first.
OFFSETS = np.array(
    [
        (radius * math.cos(2 * math.pi * turn / NEAR), radius * math.sin(2 * math.pi * turn / NEAR))
        for radius in range(9, 2000, 4)
        for turn in range(1, NEAR + 1)
    ]
)
COSTS = (("memory_mib", "peak memory above training's state (MiB)"), ("seconds", "time (s)"))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, error) that no other point beats in both, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=points.__getitem__):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def draw_comparison(path: Path, result: Mapping[str, Any]) -> None:
    """Draw a comparison as stored in ``compare.json``: see ``comparison_figure``."""
    save_figure(comparison_figure(result), path)


@styled
def comparison_figure(result: Mapping[str, Any]) -> Figure:
    """Error against memory and against time; the legend has the solvers by number, most exact first.

    Without a reference, the residual replaces the error.
    """
    key = "error" if result["reference"].get("usable") else "residual"
    measured = [row for row in result["rows"] if "problem" not in row and row[key] is not None]
    rows = sorted(measured, key=lambda row: row[key])
    figure = new_figure(WIDEST, max(5.6, 1 + 0.19 * len(rows)))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (cost, label) in zip(axes, COSTS, strict=True):
        _draw(axis, rows, [(row[cost], max(row[key], SMALLEST_ERROR)) for row in rows])
        axis.set_xlabel(label)
    axes[0].set_ylabel("relative error of the hypergradient" if key == "error" else "relative residual")
    figure.suptitle(
        f"{result['recipe']} on {result['data']}, step {result['step']}, damping {result['damping']:g}; "
        "orange: the Pareto front; triangle: points against the reference; x: a solve failed",
    )
    if rows:
        handles = [Line2D([], [], ls="", color=GREY, marker=_markers(row)[0], ms=MARKER_SIZE) for row in rows]
        names = [f"{number}  {row['solver']}" for number, row in enumerate(rows, 1)]
        figure.legend(handles, names, loc="outside right center", fontsize=LABEL_SIZE)
    figure.draw_without_rendering()  # settles the layout, on which the room for labels depends
    for axis, (cost, _) in zip(axes, COSTS, strict=True):
        _number(axis, [(row[cost], max(row[key], SMALLEST_ERROR)) for row in rows])
    return figure


def _draw(axis: Any, rows: Sequence[Mapping[str, Any]], points: Sequence[tuple[float, float]]) -> None:
    """Draw the points of rows, and the Pareto front."""
    front = pareto_front(points)
    if front:
        axis.plot(*zip(*[points[index] for index in front], strict=True), color=VERMILLION, lw=1, zorder=1)
    for index, (row, point) in enumerate(zip(rows, points, strict=True)):
        for marker in _markers(row):
            axis.scatter(
                *point, s=MARKER_SIZE**2, color=VERMILLION if index in front else GREY, marker=marker, zorder=2
            )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(LogFormatter())  # 20 instead of 2 x 10^1
    axis.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axis.margins(0.1)


def _markers(row: Mapping[str, Any]) -> list[str]:
    """The markers that make up a row's point."""
    return ["v"] * points_against(row) + ["x"] * bool(row["failed"]) or ["o"]


def _number(axis: Any, points: Sequence[tuple[float, float]]) -> None:
    """Write each point's number at the nearest place in the axes free of other numbers and of points, with a thin line
    to those farther away. There is one: the figure's height grows with the number of points."""
    scale = axis.figure.dpi / 72  # pixels in a point
    centres = axis.transData.transform(points) if points else []
    taken = [_box(centre, scale * MARKER_SIZE, scale * MARKER_SIZE) for centre in centres]
    for number, (point, centre) in enumerate(zip(points, centres, strict=True), 1):
        width, height = scale * LABEL_SIZE * 0.75 * len(str(number)), scale * LABEL_SIZE * 1.3
        boxes = ((place, _box(centre + scale * offset, width, height)) for place, offset in enumerate(OFFSETS))
        place, box = next((p, b) for p, b in boxes if _within(axis.bbox, b) and not b.count_overlaps(taken))
        taken.append(box)
        line = {"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 0} if place >= NEAR else None
        style = {"fontsize": LABEL_SIZE, "ha": "center", "va": "center", "in_layout": False}
        axis.annotate(str(number), point, OFFSETS[place], textcoords="offset points", arrowprops=line, **style)


def _box(centre: np.ndarray, width: float, height: float) -> Bbox:
    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)


def _within(outer: Bbox, box: Bbox) -> bool:
    return outer.x0 < box.x0 and outer.y0 < box.y0 and box.x1 < outer.x1 and box.y1 < outer.y1
