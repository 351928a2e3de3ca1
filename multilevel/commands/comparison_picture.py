"""Differences between two models, with their intervals, one row per measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from multilevel.recipes.export.paired import Row
from multilevel.recipes.pictures.figures import new_figure, save_figure, styled


@styled
def draw_comparison(target: Path | BinaryIO, rows: Sequence[Row], minimum_effect: float, title: str) -> None:
    """Draw each difference as a point with its 95% interval.

    Args:
        target: the PNG to write.
        rows: the measures, the first at the top.
        minimum_effect: the smallest worthwhile difference, drawn as a dashed line.
        title: the title above the picture.
    """
    figure = new_figure(7.0, 1.2 + 0.35 * len(rows))
    axis = figure.subplots()
    positions = range(len(rows), 0, -1)
    for position, row in zip(positions, rows, strict=True):
        low, high = row.interval
        color = "#27ae60" if low > 0 else "#c0392b" if high < 0 else "#7f8c8d"
        axis.plot([100 * low, 100 * high], [position, position], color=color, linewidth=2)
        axis.plot([100 * row.difference], [position], "o", color=color)
    axis.axvline(0, color="black", linewidth=1)
    label = "smallest worthwhile difference"
    axis.axvline(100 * minimum_effect, color="black", linewidth=1, linestyle="--", label=label)
    axis.set_yticks(list(positions), [f"{row.name} ({row.old:.1%} to {row.new:.1%})" for row in rows], fontsize=8)
    axis.set_ylim(0.4, len(rows) + 0.6)
    axis.set_xlabel("new - old, points (95% interval)")
    axis.legend(fontsize=8)
    axis.set_title(title, fontsize=10)
    save_figure(figure, target)
