"""Permutation tests between two samples of groups of images, and their correction for the number of tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

PERMUTATIONS = 999
_ROUNDING = 1e-12  # rounding must not make a tie with the same split smaller


def draw_memberships(
    first: np.ndarray, second: np.ndarray, random: np.random.Generator, permutations: int = PERMUTATIONS
) -> np.ndarray:
    """Assign whole groups to the first sample at random, as many as it has: images of one group stay together.

    If all images were independent although they come in groups, the tests would take the difference between few groups
    for one between the samples.

    Args:
        first: int64 [N], the groups of the first sample's images.
        second: int64 [M], those of the second sample's; equal numbers in both samples are different groups.
        random: draws the permutations.
        permutations: how many to draw.

    Returns:
        float64 [N + M, permutations + 1], 1 for members of the first sample; the first column is the observed split.
    """
    first_groups, second_groups = (np.unique(groups, return_inverse=True)[1] for groups in (first, second))
    count = int(first_groups.max()) + 1
    groups = np.concatenate([first_groups, second_groups + count])
    total = int(groups.max()) + 1
    chosen = np.zeros((total, permutations + 1))
    chosen[:count, 0] = 1
    for column in range(1, permutations + 1):
        chosen[random.permutation(total)[:count], column] = 1
    return chosen[groups]


def mmd_statistics(points: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The squared maximum mean discrepancy of each split, unbiased: equation 3 of Gretton et al. (2012).

    The kernel is exp(-d^2 / (2 s^2)), s the median distance between all pairs of points.

    Args:
        points: float [S, D].
        members: float64 [S, P], see ``draw_memberships``; at least two points of every column on either side.

    Returns:
        float64 [P].
    """
    kernel = _kernel(points.astype(np.float64))
    counts = members.sum(0)
    others = len(members) - counts
    within = np.einsum("ij,ij->j", members, kernel @ members)  # sum over pairs within the first sample
    rows = kernel.sum(1)
    touching = rows @ members  # pairs with at least one point in the first sample
    beyond = rows.sum() - 2 * touching + within
    values = within / (counts * (counts - 1)) + beyond / (others * (others - 1))
    return values - 2 * (touching - within) / (counts * others)


def ks_statistics(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The largest difference between the two samples' distribution functions (Kolmogorov and Smirnov) in each split.

    Args:
        values: float [S].
        members: float64 [S, P], see ``draw_memberships``.

    Returns:
        float64 [P], from 0 to 1.
    """
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))  # of runs of equal values
    counts = members.sum(0)
    below = np.cumsum(members[order], axis=0)[ends]
    others = (ends[:, None] + 1 - below) / (len(values) - counts)
    return np.abs(below / counts - others).max(0)


def p_value(statistics: np.ndarray) -> float:
    """The share of splits that are at least as extreme as the first, which is the observed one.

    The observed split counts among them, so the p-value is valid for any number of permutations (Phipson and Smyth
    2010).

    >>> p_value(np.array([3.0, 1.0, 3.0, 2.0]))
    0.5
    """
    return float((statistics >= statistics[0] - _ROUNDING).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests, which may depend on each other (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, test in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[test]))
        adjusted[test] = largest
    return adjusted


def _kernel(points: np.ndarray) -> np.ndarray:
    """The Gaussian kernel between all points [N, N], with diagonal 0."""
    distances = euclidean_distances(points)
    between = distances[np.triu_indices(len(points), 1)]
    between = between[between > 0]
    width = float(np.median(between)) if len(between) else 1.0  # if all points are equal
    kernel = np.exp(-((distances / width) ** 2) / 2)
    np.fill_diagonal(kernel, 0)
    return kernel
