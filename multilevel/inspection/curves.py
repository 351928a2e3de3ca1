"""Draws curves as SVG, with text that the browser draws in the reader's fonts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from multilevel.recipes.pictures.figures import BLUE, GREEN, GREY, VERMILLION

WIDTH, HEIGHT = 360, 330
LEFT, TOP, SIDE = 52, 12, 268  # the square of the axes
COLOURS, CHANCE, POINT = (BLUE, GREEN), GREY, VERMILLION


@dataclass(frozen=True)
class Curve:
    """A curve in the unit square.

    Attributes:
        name: its name in the key.
        x, y: coordinates, float [N], from 0 to 1.
    """

    name: str
    x: np.ndarray
    y: np.ndarray


def roc(name: str, scores: np.ndarray, defect: np.ndarray) -> Curve:
    """The ROC curve of scores [N] for ``defect`` [N]: recall over the share of false alarms."""
    false_alarms, recall, _ = roc_curve(defect, scores)
    return Curve(name, false_alarms, recall)


def precision_recall(name: str, scores: np.ndarray, defect: np.ndarray) -> Curve:
    """The precision-recall curve of scores [N] for ``defect`` [N], as the steps whose area is the average precision."""
    precision, recall, _ = precision_recall_curve(defect, scores, drop_intermediate=True)
    precision, recall = precision[recall > 0], recall[recall > 0]  # ascending thresholds, so descending recall
    return Curve(name, np.append(np.repeat(recall, 2)[1:], 0.0), np.repeat(precision, 2))


def draw(
    curves: Sequence[Curve],
    labels: tuple[str, str],
    title: str,
    chance: tuple[tuple[float, float], tuple[float, float]],
    point: tuple[float, float] | None = None,
) -> str:
    """Draw curves on axes from 0 to 100%.

    Args:
        curves: at most two.
        labels: of the x and the y axis.
        title: read aloud to readers who do not see the picture.
        chance: ends of a dashed line, what guessing gives.
        point: where the threshold is.

    Returns:
        An ``<svg>`` element.
    """
    parts = [f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#b8c2ca"/>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = _place(share, share)
        parts.append(f'<text x="{x}" y="{TOP + SIDE + 16}" text-anchor="middle">{100 * share:g}%</text>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{100 * share:g}%</text>')
        if 0 < share < 1:
            parts.append(f'<path d="M{x} {TOP}V{TOP + SIDE}M{LEFT} {y}H{LEFT + SIDE}" stroke="#e3e8ec"/>')
    parts.append(_line(np.array(chance), CHANCE, "1.2", ' stroke-dasharray="5 4"'))
    for curve, colour in reversed(list(zip(curves, COLOURS, strict=False))):
        parts.append(_line(np.stack([curve.x, curve.y], 1), colour, "2.2"))
    if point is not None:
        x, y = _place(*point)
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{POINT}" stroke="white"/>')
    middle = TOP + SIDE / 2
    parts.append(f'<text x="{LEFT + SIDE / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(labels[0])}</text>')
    parts.append(
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(labels[1])}</text>'
    )
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return "\n".join([opening, *parts, "</svg>"])


def _place(x: float, y: float) -> tuple[float, float]:
    return round(LEFT + SIDE * x, 1), round(TOP + SIDE * (1 - y), 1)


def _line(points: np.ndarray, colour: str, width: str, more: str = "") -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in (_place(*point) for point in points.tolist()))
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{more}/>'
