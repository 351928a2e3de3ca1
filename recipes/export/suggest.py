"""Chooses the images whose labels would help a classifier most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from sklearn.cluster import kmeans_plusplus
from sklearn.preprocessing import StandardScaler

POOL = 4  # times as many uncertain images as are chosen, for diversity to choose from
SPARE = 2  # times as many as are asked for, since near copies are left out
UNUSUAL = 5  # at most every fifth is chosen because it is unusual

Kind = Literal["uncertain", "unusual", "diverse"]


@dataclass(frozen=True)
class Choice:
    """A chosen image by its row, and why it was chosen."""

    row: int
    kind: Kind


def choose(
    features: np.ndarray,
    probabilities: np.ndarray | None,
    novelty: np.ndarray | None,
    count: int,
    is_copy: Callable[[int, list[int]], bool] = lambda row, chosen: False,
    seed: int = 0,
) -> list[Choice]:
    """Choose images to label, the most helpful first.

    Most are chosen as in BADGE (Ash et al. 2020, "Deep batch active learning by diverse, uncertain gradient lower
    bounds"): by k-means++ on the gradients of the classifier's last layer, if its prediction were the label, which are
    large for uncertain images and differ between unlike ones. It chooses among the images with the smallest margin
    between the two most probable classes (Settles 2009, section 3.1). At most every fifth is the most unusual one
    instead, of which the classifier may be wrongly certain. Without a classifier, k-means++ chooses among the features.

    Args:
        features: float [N, D].
        probabilities: float [N, classes]; None without a classifier.
        novelty: float [N], distance from the training images divided by the distance beyond which an image is unusual;
            None if it is unknown.
        count: images to choose; fewer if there are fewer, apart from near copies.
        is_copy: whether a row is a near copy of one of the chosen rows.
        seed: seed of k-means++.

    Examples:
        >>> features = np.array([[0.0], [0.1], [5.0], [5.1]])
        >>> probabilities = np.array([[0.9, 0.1], [0.55, 0.45], [0.02, 0.98], [0.01, 0.99]])
        >>> [choice.row for choice in choose(features, probabilities, None, count=4)]
        [1, 0, 2, 3]
    """
    chosen: list[int] = []
    unusual = _take(_most_unusual(novelty), count // UNUSUAL, is_copy, chosen)
    rest = np.setdiff1d(np.arange(len(features)), unusual)
    if probabilities is None:
        kind: Kind = "diverse"
        ordered = rest[_spread(StandardScaler().fit_transform(features[rest]), SPARE * count, seed)]
    else:
        kind = "uncertain"
        pool = rest[np.argsort(margins(probabilities[rest]), kind="stable")[: POOL * count]]
        ordered = pool[_spread(gradients(features[pool], probabilities[pool]), SPARE * count, seed)]
    others = _take(iter(ordered.tolist()), count - len(unusual), is_copy, chosen)
    if probabilities is not None:
        others.sort(key=lambda row: float(margins(probabilities[row : row + 1])[0]))
    return _merged([Choice(row, kind) for row in others], [Choice(row, "unusual") for row in unusual])


def margins(probabilities: np.ndarray) -> np.ndarray:
    """The difference [N] between the two largest probabilities of each row [N, classes].

    >>> margins(np.array([[0.5, 0.3, 0.2]])).round(6).tolist()
    [0.2]
    """
    largest = np.sort(probabilities, axis=1)
    return largest[:, -1] - largest[:, -2]


def gradients(features: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The gradients [N, classes * D] of the cross-entropy by a linear layer's weights, with the most probable class as
    the label (Ash et al. 2020, equation 1); the features [N, D] are standardized first."""
    residuals = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(1)]
    standardized = StandardScaler().fit_transform(features)
    return (residuals[:, :, None] * standardized[:, None, :]).reshape(len(features), -1)


def _spread(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Every row once, those that k-means++ chooses first, in its order."""
    every = np.arange(len(points))
    if not len(points):
        return every
    first = kmeans_plusplus(points, min(count, len(points)), random_state=seed)[1]
    ordered = list(dict.fromkeys(first.tolist()))  # among equal points it may choose one twice
    return np.concatenate([ordered, np.setdiff1d(every, ordered)]).astype(int)


def _most_unusual(novelty: np.ndarray | None) -> Iterator[int]:
    if novelty is not None:
        yield from (row for row in np.argsort(-novelty, kind="stable").tolist() if novelty[row] > 1)


def _take(rows: Iterator[int], count: int, is_copy: Callable[[int, list[int]], bool], chosen: list[int]) -> list[int]:
    """The first ``count`` rows that are not near copies of ``chosen``, to which they are added."""

    def fresh() -> Iterator[int]:
        for row in rows:
            if not is_copy(row, chosen):
                chosen.append(row)
                yield row

    return list(islice(fresh(), count))


def _merged(others: list[Choice], unusual: list[Choice]) -> list[Choice]:
    """Every fifth is unusual, while there are any."""
    merged = list(others)
    for number, choice in enumerate(unusual, start=1):
        merged.insert(UNUSUAL * number - 1, choice)
    return merged
