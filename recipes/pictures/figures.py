"""Figures in one style, without a lasting change of matplotlib's global state, saved atomically."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

from cycler import cycler
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from multilevel.recipes.pictures.fonts import FONT, make_legible
from multilevel.solvers.files import write_whole

#: Colours that people with any colour vision can tell apart: of Okabe and Ito (2008) without yellow, and two of Tol's.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, "#882255", "#999933")
INK, GREY = "#222222", "#767676"  # text; whatever a picture compares with
PIXELS_PER_INCH = 120
WIDEST = 10.5  # inches: 1,260 pixels, which fit a screen

STYLE: dict[Any, Any] = {
    "font.family": [FONT],
    "font.size": 10,
    "figure.titlesize": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": "#e0e0e0",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "errorbar.capsize": 3,
    "image.interpolation": "nearest",
}

#: Decorates functions that draw, so that their pictures look like those of one paper.
styled = rc_context(STYLE)


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure with its size in inches; its user is ``styled``.

    Examples:
        >>> figure = new_figure(7, 4)
        >>> figure.get_size_inches().tolist()
        [7.0, 4.0]
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, target: Path | BinaryIO) -> None:
    """Write a PNG into a file, completely or not at all, or into an open one; every character in it can be read: see
    ``make_legible``."""
    make_legible(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=PIXELS_PER_INCH)
    if isinstance(target, Path):
        write_whole(target, picture.getvalue())
    else:
        target.write(picture.getvalue())
