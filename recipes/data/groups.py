"""Groups images that belong together: those of one part, lot or date, near copies, and identical files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from multilevel.recipes.data.images import Source, SourceSplits, StreamedImages, check_readable
from multilevel.recipes.data.settings import KEEP, DataSettings
from multilevel.solvers.errors import DataError

SIDE = 32  # pixels per side at which images are compared
MOST = 20_000  # images to compare; the time grows with the square of their number
LARGEST_SHARE, SMALL_GROUP = 0.05, 10  # of a class: near copies of more images are not kept together
_BLOCK = 500  # images compared at once


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, by row: int64 arrays ``[P]``."""

    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, keys: list[str | None]) -> Pairs:
        """Each image with an equal key, paired with the first one of that key.

        >>> Pairs.of(["a", None, "a", None]).second.tolist()
        [2]
        """
        firsts: dict[str, int] = {}
        pairs = [(firsts.setdefault(key, row), row) for row, key in enumerate(keys) if key is not None]
        different = np.array([pair for pair in pairs if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2)
        return cls(different[:, 0], different[:, 1])


def components(pairs: list[Pairs], count: int) -> np.ndarray:
    """The connected components of ``count`` images: int64 ``[count]``.

    >>> components([Pairs(np.array([0]), np.array([2]))], 3).tolist()
    [0, 1, 0]
    """
    first = np.concatenate([np.arange(0), *(pair.first for pair in pairs)])
    second = np.concatenate([np.arange(0), *(pair.second for pair in pairs)])
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def with_groups(sources: SourceSplits, settings: DataSettings) -> tuple[SourceSplits, tuple[str, ...]]:
    """The sources with the groups that the settings ask for, and lines about them for the screen.

    Near copies and identical files are compared within the training images, and with the test images if the set has its
    own; a test split that was given does not change, copies of its images are only counted.

    Raises:
        SettingError: ``data.group`` does not suit the images.
        DataError: training images that cannot be read.
    """
    train, test = sources.train, sources.test
    pairs = [Pairs.of(train.group_keys(settings.group))] if settings.group else []
    notes: list[str] = []
    if train.groups is not None:
        pairs.append(Pairs.of([str(group) for group in train.groups.tolist()]))
    if settings.near_copies != KEEP:
        count = len(train) + (0 if test is None else len(test))
        if count > MOST:
            notes.append(f"near copies: not looked for among {count:,} images (up to {MOST:,})")
        else:
            copies, lines = near_copies(train, test, settings.near_copies)
            pairs += [copies]
            notes += lines
    if not pairs:
        return sources, tuple(notes)
    train.groups = torch.from_numpy(components(pairs, len(train)))
    return replace(sources, train=train), tuple(notes)


def near_copies(train: Source, test: Source | None, threshold: float) -> tuple[Pairs, list[str]]:
    """Pairs of near copies among the training images, and lines about them and about copies in the test images.

    A group of more than 5% of a class (and more than 10 images) is not kept together: a set of images that all look
    alike could not be divided. Unreadable test images are only named, since nothing but the evaluation needs them.

    Raises:
        DataError: training images that cannot be read.
    """
    start = time.perf_counter()
    vectors, digests, broken = thumbnails(train)
    check_readable(broken)
    if test is not None:
        test_vectors, test_digests, broken = thumbnails(test)
        vectors, digests = np.concatenate([vectors, test_vectors]), digests + test_digests
    every = components([Pairs.of(digests), correlated(vectors, threshold)], len(vectors))
    seconds = time.perf_counter() - start
    groups, tested = every[: len(train)], every[len(train) :]
    large = large_groups(groups, train.labels.numpy())
    notes = _about_test_images(int(np.isin(tested, groups).sum()), len(tested), broken, threshold)
    notes += _about_groups(np.bincount(groups), large, threshold, f"{len(every):,} images compared in {seconds:.1f} s")
    return Pairs.of([None if large[group] else str(group) for group in groups]), notes


def _about_test_images(copies: int, count: int, broken: Mapping[int, DataError], threshold: float) -> list[str]:
    notes = []
    if broken:
        first = broken[min(broken)]
        notes.append(f"{len(broken)} of {count} test images cannot be read, so they cannot be scored: {first}")
    if copies:
        notes.append(
            f"{copies} of {count} test images are copies or near copies (correlation above {threshold:g}) of training "
            "images: scores on them are too good"
        )
    return notes


def _about_groups(sizes: np.ndarray, large: np.ndarray, threshold: float, compared: str) -> list[str]:
    together = sizes[(sizes > 1) & ~large]
    notes = [
        f"near copies: {compared}; {together.sum():,} images in {len(together):,} groups of near copies "
        f"(correlation above {threshold:g}) are each kept in one part"
    ]
    if large.any():
        largest = ", ".join(map(str, sorted(sizes[large], reverse=True)[:5]))
        notes.append(
            f"near copies: {large.sum()} groups of {largest} images are above {LARGEST_SHARE:.0%} of a class and "
            "not kept together; a higher data.near_copies separates them"
        )
    return notes


def thumbnails(source: Source) -> tuple[np.ndarray, list[str | None], dict[int, DataError]]:
    """Unit vectors float32 ``[N, 1024]`` of the grey images minus their means (0 for a constant image), the digests of
    their files, and the errors of those that cannot be read, by row."""
    decoded, broken = StreamedImages(source, SIDE, 1, "stretch").readable()
    vectors = unit_vectors(decoded.flatten(1).numpy().astype(np.float32))
    return vectors, [source.digests.get(row) for row in range(len(source))], broken


def unit_vectors(pixels: np.ndarray) -> np.ndarray:
    """Rows of floating-point pixels [N, P] minus their means, divided by their norms, so that products are
    correlations; 0 for a constant row.

    >>> unit_vectors(np.array([[1.0, 3.0], [5.0, 5.0]])).round(3).tolist()
    [[-0.707, 0.707], [0.0, 0.0]]
    """
    centred = pixels - pixels.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(norms > 0, norms, 1)


def correlated(vectors: np.ndarray, threshold: float) -> Pairs:
    """Pairs of unit vectors float32 ``[N, D]`` whose product is above ``threshold``, enough to connect each group.

    >>> pairs = correlated(np.eye(3, dtype=np.float32)[[0, 1, 0]], 0.95)
    >>> pairs.first.tolist(), pairs.second.tolist()
    ([0], [2])
    """
    groups = np.arange(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        row, column = np.nonzero(vectors[start : start + _BLOCK] @ vectors[start:].T > threshold)
        # pairs of a block, and the groups so far, so that memory holds one block's pairs at a time
        edges = [Pairs(row + start, column + start), Pairs(np.arange(len(vectors)), groups)]
        labels = components(edges, len(vectors))
        firsts = np.full(labels.max() + 1, len(vectors))
        np.minimum.at(firsts, labels, np.arange(len(vectors)))
        groups = firsts[labels]
    rows = np.flatnonzero(groups != np.arange(len(vectors)))
    return Pairs(groups[rows], rows)


def large_groups(groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which groups have more than 5% of the images of a class, and more than 10: bool, by group.

    Args:
        groups: int64 ``[N]``.
        labels: int64 ``[N]``, -1 without a label.
    """
    large = np.zeros(groups.max() + 1, dtype=bool)
    for label in np.unique(labels):
        members = labels == label
        most = max(LARGEST_SHARE * members.sum(), SMALL_GROUP)
        large |= np.bincount(groups[members], minlength=len(large)) > most
    return large
