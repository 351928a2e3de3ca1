"""Random splits of labelled images that keep every class in proportion."""

from __future__ import annotations

import numpy as np

UNLABELLED = -1


def random_for(split_seed: int, purpose: str) -> np.random.Generator:
    """A separate generator for each purpose, so that the draws of one split do not change another."""
    return np.random.default_rng([split_seed, *purpose.encode()])


def cut_share(
    labels: np.ndarray, rows: np.ndarray, share: float, keep: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into two parts, class by class.

    A class of at least ``keep + 1`` images has at least one in the cut part and ``keep`` in the other. Classes of a
    single image are split together, like one class.

    Args:
        labels: int64 array ``[N]``, the labels of the whole data set.
        rows: int64 array ``[R]``, the rows to split.
        share: share of every class to cut off; 0 cuts nothing.
        keep: smallest number of images of a class that must stay.
        random: generator that draws the images.

    Returns:
        Two sorted int64 arrays: the rows that stay and the rows that are cut off.
    """
    if share == 0:
        return np.sort(rows), rows[:0]
    classes = rows_by_class(labels, rows)
    single = [members for members in classes if len(members) == 1]
    strata = [members for members in classes if len(members) > 1]
    if single:
        strata.append(np.concatenate(single))
    cut = [rows[:0]]
    for members in strata:
        most = max(len(members) - keep, 0)
        count = min(max(round(share * len(members)), 1), most)
        cut.append(random.permutation(members)[:count])
    cut_rows = np.sort(np.concatenate(cut))
    return np.setdiff1d(rows, cut_rows), cut_rows


def limit_rows(labels: np.ndarray, rows: np.ndarray, limit: int | None, random: np.random.Generator) -> np.ndarray:
    """Draw ``limit`` rows with every class (and the unlabelled images, as one class) in proportion.

    If the limit allows, two images of every class stay, so that the rows can still be split.

    Args:
        labels: int64 array ``[N]``, the labels of the whole data set.
        rows: int64 array ``[R]``, the rows to draw from.
        limit: number of rows to draw; ``None`` or more than ``R`` keeps all.
        random: generator that draws the images.

    Returns:
        A sorted int64 array.
    """
    if limit is None or limit >= len(rows):
        return np.sort(rows)
    classes = rows_by_class(labels, rows)
    counts = apportion(np.array([len(members) for members in classes]), limit)
    drawn = [random.permutation(members)[:count] for members, count in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def apportion(sizes: np.ndarray, total: int) -> np.ndarray:
    """Integers in proportion to ``sizes`` that sum to ``total``, none above its size.

    Args:
        sizes: int64 array ``[K]``.
        total: at most the sum of ``sizes``.

    Returns:
        int64 array ``[K]``; at least 2 (or the size) each, if ``total`` allows it.
    """
    exact = sizes * (total / sizes.sum())
    lowest = np.minimum(sizes, 2)
    counts = np.floor(exact).astype(np.int64)
    if lowest.sum() <= total:
        counts = np.maximum(counts, lowest)
    while counts.sum() < total:
        counts[np.argmax(np.where(counts < sizes, exact - counts, -np.inf))] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > lowest, counts - exact, -np.inf))] -= 1
    return counts


def rows_by_class(labels: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """The sorted rows of every class that occurs, in the order of the labels."""
    ordered = np.sort(rows)
    ordered = ordered[np.argsort(labels[ordered], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[ordered])) + 1
    return [members for members in np.split(ordered, starts) if len(members)]
