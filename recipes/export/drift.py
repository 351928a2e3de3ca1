"""Measures how far new images have drifted from the training images in an encoder's features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LEVEL = 0.05
SEPARABLE = 0.8
QUANTILE = 0.99
FEWEST = 5
LARGEST = 1000  # new images used in the test; the novelty of all images is reported
PERMUTATIONS = 999
FOLDS = 5
NO_DRIFT, DRIFT, TRAIN_AGAIN = "no drift seen", "drift: look at these", "train again"

RULE = f"""Verdict
  {NO_DRIFT}         the two-sample test's p is {LEVEL} or more
  {DRIFT}  p is below {LEVEL}: the images differ from the training images; the report names the most unusual
  {TRAIN_AGAIN}           p is below {LEVEL}, and a linear classifier tells new from training images with an area
                        under the ROC curve of {SEPARABLE} or more (cross-validated; 0.5 is chance)
The test is the squared maximum mean discrepancy with a Gaussian kernel, its width the median distance, and
{PERMUTATIONS} permutations (Gretton et al. 2012): without drift, p is below {LEVEL} in one report out of twenty. A
different mix of classes also counts as drift: compare the shares of the predicted classes. An image is unusual if
its Mahalanobis distance (shrunk covariance; Ledoit and Wolf 2004) exceeds that of {QUANTILE:.0%} of the training
images."""


@dataclass(frozen=True)
class Drift:
    """New features compared with reference features.

    Attributes:
        verdict: one of NO_DRIFT, DRIFT, TRAIN_AGAIN.
        mmd: squared maximum mean discrepancy, unbiased, so it can be below 0.
        p_value: p-value of the permutation test.
        separability: area under the ROC curve of a linear classifier, cross-validated.
        reference_distances: Mahalanobis distances float64 [N], each to the images of the other folds.
        distances: distances of the new images, float64 [M].
        threshold: distance above which an image is unusual.
    """

    verdict: str
    mmd: float
    p_value: float
    separability: float
    reference_distances: np.ndarray
    distances: np.ndarray
    threshold: float


def compare_features(reference: np.ndarray, new: np.ndarray, seed: int = 0) -> Drift:
    """Compare features by a two-sample test, separability and novelty.

    Args:
        reference: float [N, D].
        new: float [M, D].
        seed: seed of permutations and folds.

    Raises:
        ValueError: fewer than five rows on either side.
    """
    if min(len(reference), len(new)) < FEWEST:
        raise ValueError(f"got {len(reference)} and {len(new)} images; expected at least {FEWEST} each")
    random = np.random.default_rng(seed)
    sample = new if len(new) <= LARGEST else new[random.choice(len(new), LARGEST, replace=False)]
    mmd, p_value = mmd_test(reference, sample, random)
    area = separability(reference, sample, seed)
    before, after = mahalanobis(reference, new, seed)
    verdict = NO_DRIFT if p_value >= LEVEL else TRAIN_AGAIN if area >= SEPARABLE else DRIFT
    return Drift(verdict, mmd, p_value, area, before, after, float(np.quantile(before, QUANTILE)))


def mmd_test(
    first: np.ndarray, second: np.ndarray, random: np.random.Generator, permutations: int = PERMUTATIONS
) -> tuple[float, float]:
    """Squared maximum mean discrepancy, and the p-value of its permutation test.

    The unbiased estimate, equation 3 of Gretton et al. (2012), with kernel exp(-d^2 / (2 s^2)), s the median distance
    between all pairs of points. The p-value counts the observed split among the permutations, so it is valid for any
    number of them (Phipson and Smyth 2010).

    Args:
        first: float [N, D], N at least 2.
        second: float [M, D], M at least 2.
        random: draws the permutations.
        permutations: number of permutations.
    """
    kernel = _kernel(np.concatenate([first, second]).astype(np.float64))
    count, other_count, size = len(first), len(second), len(kernel)
    members = np.zeros((size, permutations + 1))  # each column marks the points of the first sample
    members[:count, 0] = 1
    for column in range(1, permutations + 1):
        members[random.permutation(size)[:count], column] = 1
    rows = kernel.sum(1)
    within = np.einsum("ij,ij->j", members, kernel @ members)  # sum over pairs within the first sample
    touching = rows @ members  # pairs with at least one point in the first sample
    beyond = rows.sum() - 2 * touching + within
    values = within / (count * (count - 1)) + beyond / (other_count * (other_count - 1))
    values -= 2 * (touching - within) / (count * other_count)
    # Rounding must not make a tie with the same split smaller.
    exceeding = int((values[1:] >= values[0] - 1e-12).sum())
    return float(values[0]), (1 + exceeding) / (1 + permutations)


def separability(reference: np.ndarray, new: np.ndarray, seed: int) -> float:
    """The area under the ROC curve of logistic regression between new and reference features, averaged over folds."""
    features = np.concatenate([reference, new])
    origin = np.repeat([0, 1], [len(reference), len(new)])
    folds = StratifiedKFold(min(FOLDS, len(new), len(reference)), shuffle=True, random_state=seed)
    # Strong regularization: with as many features as images, a weakly regularized fit separates anything.
    classifier = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
    probe = make_pipeline(StandardScaler(), classifier)
    return float(cross_val_score(probe, features, origin, cv=folds, scoring="roc_auc").mean())


def mahalanobis(reference: np.ndarray, new: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances of reference [N] and new points [M] to the reference's mean under its shrunk covariance.

    Each reference point is measured only against the other folds; a covariance that includes the point would put it
    closer than any new point.
    """
    before = np.empty(len(reference))
    for fitted, fold in KFold(min(FOLDS, len(reference)), shuffle=True, random_state=seed).split(reference):
        before[fold] = _distances(reference[fitted], reference[fold])
    return before, _distances(reference, new)


def _distances(reference: np.ndarray, points: np.ndarray) -> np.ndarray:
    scaler = StandardScaler().fit(reference)
    covariance = LedoitWolf().fit(scaler.transform(reference))
    return np.sqrt(covariance.mahalanobis(scaler.transform(points)))


def _kernel(points: np.ndarray) -> np.ndarray:
    """The Gaussian kernel between all points [N, N], with diagonal 0."""
    distances = euclidean_distances(points)
    between = distances[np.triu_indices(len(points), 1)]
    between = between[between > 0]
    width = float(np.median(between)) if len(between) else 1.0  # if all points are equal
    kernel = np.exp(-((distances / width) ** 2) / 2)
    np.fill_diagonal(kernel, 0)
    return kernel
