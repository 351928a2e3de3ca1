"""Distances of training and new images, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multilevel.recipes.pictures.figures import GREY, INK, VERMILLION, new_figure, save_figure, styled

BINS = 40


@styled
def draw_drift(path: Path, reference: np.ndarray, new: np.ndarray, threshold: float, title: str) -> None:
    """Draw both distributions on one logarithmic scale.

    Args:
        path: the PNG to write.
        reference: distances [N], not negative.
        new: distances [M], not negative.
        threshold: images at larger distances are unusual.
        title: the title above the picture.
    """
    joined = np.concatenate([reference, new])
    lowest = max(float(joined.min()), 1e-6)
    edges = np.geomspace(lowest, max(float(joined.max()), lowest * 1.1), BINS + 1).tolist()
    figure = new_figure(7.0, 4.0)
    axis = figure.subplots()
    for distances, color, name in ((reference, GREY, "training images"), (new, VERMILLION, "new images")):
        share = np.full(len(distances), 1 / len(distances))
        axis.hist(np.clip(distances, lowest, None), edges, weights=share, color=color, alpha=0.55, label=name)
    axis.axvline(threshold, color=INK, linestyle="--", linewidth=1, label="unusual beyond this line")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_xlabel("distance from the training images (Mahalanobis)")
    axis.set_ylabel("share of the images")
    axis.legend()
    axis.set_title(title)
    save_figure(figure, path)
