"""Measures how far new images have drifted from the training images, in an encoder's features and in their optics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from multilevel.recipes.export.optics import MEASURES, near_copies
from multilevel.recipes.export.two_sample import (
    PERMUTATIONS,
    draw_memberships,
    holm,
    ks_statistics,
    mmd_statistics,
    p_value,
)

LEVEL = 0.05
SEPARABLE = 0.8
QUANTILE = 0.99
FEWEST = 5
FEWEST_GROUPS = 20
LARGEST = 1000  # new images used in the tests; the novelty of all images is reported
FOLDS = 5
FEATURES = "features"
NO_DRIFT, DRIFT, TRAIN_AGAIN = "no drift seen", "drift: look at these", "train again"

RULE = f"""Verdict
  {NO_DRIFT}         every test's adjusted p is {LEVEL} or more
  {DRIFT}  an adjusted p is below {LEVEL}: the images differ from the training images, in the encoder's
                        features or in the optics that are named; the report lists the most unusual images
  {TRAIN_AGAIN}           the features' adjusted p is below {LEVEL}, and a linear classifier on them tells new from
                        training images with an area under the ROC curve of {SEPARABLE} or more (cross-validated; 0.5 is
                        chance)
The tests compare the encoder's features, by the squared maximum mean discrepancy with a Gaussian kernel, its width the
median distance (Gretton et al. 2012), and the optics of the files before any resizing, by Kolmogorov and Smirnov's
statistic: sharpness (also with the shorter side at 256 pixels), brightness, contrast, noise (Immerkaer 1996), width and
height. Each has {PERMUTATIONS} permutations, and Holm's correction for the number of tests: without drift, one report
out of twenty has an adjusted p below {LEVEL}. Images of one group (of the data, or connected near copies: a correlation
above 0.95 in grey at 32 x 32 pixels) stay together in every permutation. An export of an earlier version has no optics:
only its features are tested. A different mix of classes also counts as drift: compare the shares of the predicted
classes. An image is unusual if its Mahalanobis distance (shrunk covariance; Ledoit and Wolf 2004) exceeds that of
{QUANTILE:.0%} of the training images."""


@dataclass(frozen=True)
class Sample:
    """Images to compare.

    Attributes:
        features: float32 [N, D].
        optics: float32 [N, 7], see ``measure_optics``; None if not measured.
        groups: int64 [N], equal for images that belong together; None: every image is a group.
        thumbnails: uint8 [N, P], to find near copies by; None: not looked for.
    """

    features: np.ndarray
    optics: np.ndarray | None = None
    groups: np.ndarray | None = None
    thumbnails: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, chosen: np.ndarray) -> Sample:
        """The sample of the images at ``chosen`` (int64 [M])."""
        parts = (self.features, self.optics, self.groups, self.thumbnails)
        return Sample(*[None if part is None else part[chosen] for part in parts])  # type: ignore[arg-type]


@dataclass(frozen=True)
class DriftTest:
    """A two-sample test.

    Attributes:
        name: ``features``, or one of ``MEASURES``.
        statistic: squared maximum mean discrepancy (unbiased, so it can be below 0) or Kolmogorov and Smirnov's.
        p_value: of its permutations.
        adjusted: p-value after Holm's correction for all tests of the report.
    """

    name: str
    statistic: float
    p_value: float
    adjusted: float

    @property
    def changed(self) -> bool:
        return self.adjusted < LEVEL


@dataclass(frozen=True)
class Drift:
    """New images compared with reference images.

    Attributes:
        verdict: one of NO_DRIFT, DRIFT, TRAIN_AGAIN.
        tests: the features' test, then those of the optics, if measured.
        separability: area under the ROC curve of a linear classifier on the features, cross-validated.
        reference_distances: Mahalanobis distances float64 [N], each to the images of the other folds.
        distances: distances of the new images, float64 [M].
        threshold: distance above which an image is unusual.
        reference_groups, groups: number of groups that the tests kept together, of training and new images.
        notes: what limits the tests, in words.
    """

    verdict: str
    tests: tuple[DriftTest, ...]
    separability: float
    reference_distances: np.ndarray
    distances: np.ndarray
    threshold: float
    reference_groups: int
    groups: int
    notes: tuple[str, ...]


def compare(reference: Sample, new: Sample, seed: int = 0) -> Drift:
    """Compare images by two-sample tests, separability and novelty.

    Args:
        reference: of training images.
        new: of new images. Near copies among them are grouped if the reference has groups.
        seed: seed of permutations and folds.

    Raises:
        ValueError: fewer than five images on either side.
    """
    if min(len(reference), len(new)) < FEWEST:
        raise ValueError(f"got {len(reference)} and {len(new)} images; expected at least {FEWEST} each")
    random = np.random.default_rng(seed)
    drawn = new if len(new) <= LARGEST else new.rows(random.choice(len(new), LARGEST, replace=False))
    groups, notes = choose_groups(reference, drawn)
    tests = run_tests(reference, drawn, draw_memberships(*groups, random))
    area = separability(reference.features, drawn.features, groups, seed)
    verdict = NO_DRIFT
    if any(test.changed for test in tests):
        verdict = TRAIN_AGAIN if tests[0].changed and area >= SEPARABLE else DRIFT
    before, after = mahalanobis(reference.features, new.features, seed, groups[0])
    threshold = float(np.quantile(before, QUANTILE))
    counts = (count_groups(groups[0]), count_groups(groups[1]))
    return Drift(verdict, tests, area, before, after, threshold, *counts, tuple(notes))


def choose_groups(reference: Sample, new: Sample) -> tuple[tuple[np.ndarray, np.ndarray], list[str]]:
    """The groups of reference [N] and new images [M], and notes on what limits them.

    Few groups cannot be permuted: their images then count as independent, and a note says so.
    """
    alone = np.arange(len(reference)), np.arange(len(new))
    if reference.groups is None or count_groups(reference.groups) == len(reference):
        return alone, []
    count = count_groups(reference.groups)
    if count < FEWEST_GROUPS:
        note = f"the training images are of {count} groups only, too few to know how groups differ: a new group of "
        return alone, [note + "images counts as drift even if nothing has changed"]
    if new.thumbnails is None:
        return (reference.groups, alone[1]), []
    groups = near_copies(new.thumbnails)
    if count_groups(groups) < FEWEST:
        return (reference.groups, alone[1]), ["nearly all new images are near copies of each other"]
    return (reference.groups, groups), []


def run_tests(reference: Sample, new: Sample, members: np.ndarray) -> tuple[DriftTest, ...]:
    """Test the features and, if both samples have them, the optics.

    Args:
        reference: N images.
        new: M images.
        members: the splits, float64 [N + M, P], see ``draw_memberships``.
    """
    statistics = {FEATURES: mmd_statistics(np.concatenate([reference.features, new.features]), members)}
    sizes = members.sum(0) * (len(members) - members.sum(0))
    weight = (
        sizes / sizes[0]
    )  # splits of groups differ in their numbers of images, and with them the statistics' spread
    weights = {FEATURES: weight}
    if reference.optics is not None and new.optics is not None:
        for name, values in zip(MEASURES, np.concatenate([reference.optics, new.optics]).T, strict=True):
            statistics[name] = ks_statistics(values, members)
            weights[name] = np.sqrt(weight)
    p_values = [p_value(values * weights[name]) for name, values in statistics.items()]
    first = [float(values[0]) for values in statistics.values()]
    return tuple(DriftTest(*test) for test in zip(statistics, first, p_values, holm(p_values), strict=True))


def count_groups(groups: np.ndarray) -> int:
    return len(np.unique(groups))


def separability(reference: np.ndarray, new: np.ndarray, groups: tuple[np.ndarray, np.ndarray], seed: int) -> float:
    """The area under the ROC curve of logistic regression between new and reference features, averaged over folds,
    each with whole groups."""
    features = np.concatenate([reference, new])
    origin = np.repeat([0, 1], [len(reference), len(new)])
    joined = np.concatenate([groups[0], groups[1] + groups[0].max() + 1])
    count = min(FOLDS, *map(count_groups, groups))
    grouped = count_groups(joined) < len(joined)
    folds = (StratifiedGroupKFold if grouped else StratifiedKFold)(count, shuffle=True, random_state=seed)
    # Strong regularization: with as many features as images, a weakly regularized fit separates anything.
    classifier = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
    probe = make_pipeline(StandardScaler(), classifier)
    kept = joined if grouped else None
    return float(cross_val_score(probe, features, origin, groups=kept, cv=folds, scoring="roc_auc").mean())


def mahalanobis(
    reference: np.ndarray, new: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of reference [N] and new points [M] to the reference's mean under its shrunk covariance.

    Each reference point is measured only against the other folds, of whole groups (int64 [N]); a covariance that
    includes the point, or a near copy, would put it closer than any new point.
    """
    numbers = np.unique(np.arange(len(reference)) if groups is None else groups, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    before = np.empty(len(reference))
    for _, fold in KFold(min(FOLDS, count), shuffle=True, random_state=seed).split(np.arange(count)):
        measured = np.isin(numbers, fold)
        before[measured] = _distances(reference[~measured], reference[measured])
    return before, _distances(reference, new)


def _distances(reference: np.ndarray, points: np.ndarray) -> np.ndarray:
    scaler = StandardScaler().fit(reference)
    covariance = LedoitWolf().fit(scaler.transform(reference))
    return np.sqrt(covariance.mahalanobis(scaler.transform(points)))
