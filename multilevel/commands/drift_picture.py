"""Distances and optics of training and new images, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from multilevel.recipes.export.drift import Drift, DriftTest, Sample
from multilevel.recipes.export.optics import MEASURES
from multilevel.recipes.pictures.figures import new_figure, save_figure, styled

BINS = 25
TICKS = 4  # of the logarithmic scale
TRAINING, NEW = "#7f8c8d", "#c0392b"


@styled
def draw_drift(target: Path | BinaryIO, drift: Drift, reference: Sample, new: Sample) -> None:
    """Draw the distances and, if measured, a panel for each optical measure; those that changed are marked.

    Args:
        target: the PNG to write.
        drift: the comparison of the two samples.
        reference: the training images.
        new: the new images.
    """
    measured = reference.optics is not None and new.optics is not None
    figure = new_figure(12.0, 6.0) if measured else new_figure(7.0, 4.0)
    axes = figure.subplots(2, 4).ravel() if measured else [figure.subplots()]
    draw_distances(axes[0], drift)
    if reference.optics is not None and new.optics is not None:
        panels = zip(axes[1:], MEASURES.items(), drift.tests[1:], reference.optics.T, new.optics.T, strict=True)
        for axis, (name, unit), test, before, after in panels:
            draw_histograms(axis, before, after, edges_of(before, after), f"{name} ({unit})")
            mark(axis, test)
    for axis in axes[::4]:
        axis.set_ylabel("share of the images", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(drift.verdict, fontsize=12)
    save_figure(figure, target)


def draw_distances(axis: Axes, drift: Drift) -> None:
    """Draw both distributions of distances on one logarithmic scale."""
    joined = np.concatenate([drift.reference_distances, drift.distances])
    lowest = max(float(joined.min()), 1e-6)
    edges = np.geomspace(lowest, max(float(joined.max()), lowest * 1.1), BINS + 1)
    before, after = (np.clip(values, lowest, None) for values in (drift.reference_distances, drift.distances))
    draw_histograms(axis, before, after, edges, "distance of the features (Mahalanobis)")
    axis.axvline(drift.threshold, color="black", linestyle="--", linewidth=1, label="unusual beyond this line")
    axis.set_xscale("log")
    axis.set_xticks(np.geomspace(edges[0], edges[-1], TICKS).tolist())
    axis.xaxis.set_major_formatter("{x:.3g}")
    axis.xaxis.set_minor_locator(NullLocator())
    mark(axis, drift.tests[0])


def draw_histograms(axis: Axes, before: np.ndarray, after: np.ndarray, edges: np.ndarray, name: str) -> None:
    """Draw the shares of training images (float [N]) and new images (float [M]) in each bin."""
    for values, color, label in ((before, TRAINING, "training images"), (after, NEW, "new images")):
        share = np.full(len(values), 1 / len(values))
        axis.hist(values, edges.tolist(), weights=share, color=color, alpha=0.55, label=label)
    axis.set_xlabel(name, fontsize=9)
    axis.tick_params(labelsize=8)


def edges_of(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The edges of bins that hold all values."""
    joined = np.concatenate([before, after])
    lowest, highest = float(joined.min()), float(joined.max())
    margin = max(highest - lowest, 1e-3 * max(abs(highest), 1)) / BINS
    return np.linspace(lowest - margin, highest + margin, BINS + 1)


def mark(axis: Axes, test: DriftTest) -> None:
    """Write a test's result above its panel."""
    text = f"p = {test.adjusted:.2g}"
    axis.set_title(f"changed, {text}" if test.changed else text, fontsize=9, color=NEW if test.changed else "black")
