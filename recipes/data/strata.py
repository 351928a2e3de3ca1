"""Random splits of labelled images that keep every class in proportion."""

from __future__ import annotations

import numpy as np

UNLABELLED = -1


def random_for(split_seed: int, purpose: str) -> np.random.Generator:
    """A separate generator for each purpose, so that the draws of one split do not change another."""
    return np.random.default_rng([split_seed, *purpose.encode()])


def cut_share(
    labels: np.ndarray,
    rows: np.ndarray,
    share: float,
    keep: int,
    random: np.random.Generator,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into two parts, class by class, and every group whole.

    A class of at least ``keep + 1`` images has at least one in the cut part and ``keep`` in the other. Classes of a
    single image are split together, like one class. If images have groups, the same holds for groups in place of
    images; see ``cut_groups``.

    Args:
        labels: int64 array ``[N]``, the labels of the whole data set.
        rows: int64 array ``[R]``, the rows to split.
        share: share of every class to cut off; 0 cuts nothing.
        keep: smallest number of images of a class that must stay.
        random: generator that draws the images.
        groups: int64 array ``[N]``; ``None``: every image is a group.

    Returns:
        Two sorted int64 arrays: the rows that stay and the rows that are cut off.
    """
    if share == 0:
        return np.sort(rows), rows[:0]
    if groups is not None and len(np.unique(groups[rows])) < len(rows):
        return cut_groups(labels, rows, share, keep, random, groups)
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


def cut_groups(
    labels: np.ndarray, rows: np.ndarray, share: float, keep: int, random: np.random.Generator, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into two parts, every group whole, with about a share of every class in the second.

    Groups are taken in random order as long as they exceed the share of no class, and leave ``keep`` groups of each of
    their classes. A class of which nothing was taken then gives its smallest group, if it has more than ``keep``. A
    class may so be missing from the cut part.

    Args and returns: see ``cut_share``.
    """
    numbers, group = np.unique(groups[rows], return_inverse=True)
    classes, label = np.unique(labels[rows], return_inverse=True)
    images = np.zeros((len(numbers), len(classes)), dtype=np.int64)  # of each group and class
    np.add.at(images, (group, label), 1)
    target = np.maximum(np.round(share * images.sum(0)), 1)
    left = (images > 0).sum(0)  # groups of each class
    taken = np.zeros(len(numbers), dtype=bool)
    cut = np.zeros(len(classes), dtype=np.int64)

    def take(number: int, most: np.ndarray) -> None:
        nonlocal cut, left
        present = images[number] > 0
        if (cut + images[number] <= most).all() and (left - present >= np.where(present, keep, 0)).all():
            taken[number], cut, left = True, cut + images[number], left - present

    order = random.permutation(len(numbers))
    for number in order:
        take(number, target)
    for position in range(len(classes)):
        smallest_first = order[np.argsort(images[order].sum(1), kind="stable")]
        for number in smallest_first:
            if cut[position] == 0 and images[number, position]:
                take(number, images.sum(0))
    chosen = taken[group]
    return np.sort(rows[~chosen]), np.sort(rows[chosen])


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
