"""Scores images by their distance from the training images in the encoder's features, for which no defect is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from multilevel.solvers import DataError

NEIGHBOURS = 5
FEWEST = NEIGHBOURS + 2  # training images
QUANTILE = 0.99
SAME = 1e-3  # of the reference's median distance to the nearest image: the same image, but for rounding


@dataclass(frozen=True)
class Distances:
    """Distances from training images.

    Attributes:
        values: mean Euclidean distance to the five nearest training images, float64 [N].
        of_reference: the same of each training image, to the others, float64 [M].
        neighbours: number of nearest training images.
        limit: distance that 99% of the training images do not exceed.
        repeated: bool [N]: images whose features are those of a training image.
    """

    values: np.ndarray
    of_reference: np.ndarray
    neighbours: int
    limit: float
    repeated: np.ndarray


def measure_distances(reference: np.ndarray, features: np.ndarray) -> Distances:
    """Measure distances to the nearest training images.

    Args:
        reference: features of training images, float [M, width].
        features: features of new images, float [N, width].

    Raises:
        DataError: fewer than seven training images, or features that are not finite.

    >>> reference = np.arange(10.0)[:, None]
    >>> measure_distances(reference, np.array([[20.0]])).values.tolist()
    [13.0]
    """
    if len(reference) < FEWEST:
        raise DataError(f"the export's reference has {len(reference)} images: too few to measure distances from")
    if not np.isfinite(reference).all() or not np.isfinite(features).all():
        raise DataError("the model's features are not finite: export a run that has not diverged")
    search = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(reference.astype(np.float64))
    apart, _ = search.kneighbors()  # each to the others
    new, _ = search.kneighbors(features.astype(np.float64)) if len(features) else (np.zeros((0, NEIGHBOURS)), None)
    of_reference = apart.mean(1)
    repeated = new[:, 0] <= SAME * float(np.median(apart[:, 0]))
    return Distances(new.mean(1), of_reference, NEIGHBOURS, float(np.quantile(of_reference, QUANTILE)), repeated)
