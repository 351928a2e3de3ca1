"""Draws error against memory and time, with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multilevel.recipes.pictures.figures import new_figure, save_figure

SMALLEST_ERROR = 1e-16


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, error) that no other point beats in both, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=points.__getitem__):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def draw_comparison(path: Path, result: Mapping[str, Any]) -> None:
    """Draw a comparison as stored in ``compare.json``: error against memory and against time.

    Without a reference, the residual replaces the error.
    """
    measured = [row for row in result["rows"] if "problem" not in row]
    key = "error" if result["reference"].get("usable") else "residual"
    rows = [row for row in measured if row[key] is not None]
    figure = new_figure(12.0, 5.6)
    for axis, (cost, label) in zip(
        figure.subplots(1, 2, sharey=True),
        (("memory_mib", "peak memory above training's state (MiB)"), ("seconds", "time (s)")),
        strict=True,
    ):
        points = [(row[cost], max(row[key], SMALLEST_ERROR)) for row in rows]
        front = pareto_front(points)
        if front:
            axis.plot(*zip(*[points[index] for index in front], strict=True), color="#c0392b", lw=1, zorder=1)
        for index, (row, point) in enumerate(zip(rows, points, strict=True)):
            color = "#c0392b" if index in front else "#7f8c8d"
            axis.scatter(*point, s=34, color=color, marker="x" if row["failed"] else "o", zorder=2)
        _label(axis, rows, points)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
        axis.margins(0.18, 0.1)
    figure.axes[0].set_ylabel("relative error of the hypergradient" if key == "error" else "relative residual")
    figure.suptitle(
        f"{result['recipe']} on {result['data']}, step {result['step']}, damping {result['damping']:g}; "
        "red: the Pareto front; x: a solve failed",
        fontsize=10,
    )
    save_figure(figure, path)


def _label(axis: Any, rows: Sequence[Mapping[str, Any]], points: Sequence[tuple[float, float]]) -> None:
    """Write names next to the points, alternating left and right where heights nearly coincide."""
    ordered = sorted(range(len(rows)), key=lambda index: points[index][1])
    for turn, index in enumerate(ordered):
        side, offset = ("left", (6, 3)) if turn % 2 == 0 else ("right", (-6, -8))
        name = rows[index]["solver"]
        axis.annotate(name, points[index], offset, textcoords="offset points", fontsize=7, ha=side)
