"""Shares, areas under curves and their intervals; how many defects a claim about recall needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log, sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import beta, norm, rankdata
from sklearn.metrics import average_precision_score, confusion_matrix

from multilevel.reports.proportions import CONFIDENCE, Proportion, Rate

BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True)
class Claim:
    """A claim about the recall of defects, compared with the data.

    Attributes:
        recall: the recall claimed, at least.
        lower_bound: one-sided 95% lower bound of recall.
        verdict: ``supported`` if the lower bound reaches the claim; ``contradicted`` if the one-sided 95% upper bound
            is below it; else ``open``; ``unknown`` without defects.
        needed: defects that would support the claim if none of them were missed.
        needed_with_one_miss: defects that would support it if one of them was missed.
    """

    recall: float
    lower_bound: float
    verdict: str
    needed: int
    needed_with_one_miss: int


def check_claim(detected: int, defects: int, recall: float) -> Claim:
    """Compare a claim about recall with the detected defects.

    >>> check_claim(299, 299, 0.99).verdict, check_claim(298, 298, 0.99).verdict
    ('supported', 'open')
    """
    lower = one_sided_lower_bound(detected, defects)
    upper = 1 - one_sided_lower_bound(defects - detected, defects)
    state = "supported" if lower >= recall else "contradicted" if upper < recall else "open"
    verdict = state if defects else "unknown"
    return Claim(recall, lower, verdict, defects_needed(recall), defects_needed(recall, misses=1))


def one_sided_lower_bound(count: int, total: int) -> float:
    """The exact one-sided 95% lower bound of a share (Clopper and Pearson 1934)."""
    return float(beta.ppf(1 - CONFIDENCE, count, total - count + 1)) if count else 0.0


def defects_needed(recall: float, misses: int = 0) -> int:
    """The fewest defects with which ``misses`` missed ones support a recall with one-sided 95% confidence.

    Without a miss the bound is 0.05 ** (1 / n), so n = log(0.05) / log(recall).

    >>> defects_needed(0.99), defects_needed(0.99, misses=1)
    (299, 473)
    """
    below = max(misses, ceil(log(1 - CONFIDENCE) / log(recall)) - 2)  # too few
    above = max(2 * below, 1)
    while one_sided_lower_bound(above - misses, above) < recall:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        enough = one_sided_lower_bound(middle - misses, middle) >= recall
        below, above = (below, middle) if enough else (middle, above)
    return above


def area_under_roc(scores: np.ndarray, defect: np.ndarray) -> Rate | None:
    """The area under the ROC curve, with a 95% interval.

    The interval is that of DeLong, DeLong and Clarke-Pearson (1988), "Comparing the areas under two or more correlated
    receiver operating characteristic curves", on the logit scale. Where its variance is 0, as with perfect separation,
    it is method 5 of Newcombe (2006), "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic, part 2".

    Args:
        scores: float [N], higher for defects; ties count half.
        defect: bool [N].

    Returns:
        None unless both kinds of image are there.

    >>> round(area_under_roc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])).value, 2)
    0.75
    """
    defects, good = scores[defect], scores[~defect]
    if not len(defects) or not len(good):
        return None
    ranks = rankdata(np.concatenate([defects, good]))
    of_defects = (ranks[: len(defects)] - rankdata(defects)) / len(good)  # share of good images below each defect
    of_good = 1 - (ranks[len(defects) :] - rankdata(good)) / len(defects)  # share of defects above each good image
    area = float(of_defects.mean())
    if min(len(defects), len(good)) > 1:
        variance = of_defects.var(ddof=1) / len(defects) + of_good.var(ddof=1) / len(good)
        if variance > 0 and 0 < area < 1:
            half = norm.ppf((1 + CONFIDENCE) / 2) * sqrt(variance) / (area * (1 - area))
            return Rate(area, float(expit(logit(area) - half)), float(expit(logit(area) + half)))
    return Rate(area, *_newcombe(area, len(defects), len(good)))


def area_under_precision_recall(scores: np.ndarray, defect: np.ndarray, seed: int = 0) -> Rate | None:
    """The average precision, with a 95% percentile interval of 1,000 bootstrap draws within defects and good images.

    Args:
        scores: float [N], higher for defects.
        defect: bool [N].
        seed: seed of the draws.

    Returns:
        None unless both kinds of image are there.
    """
    defects, good = scores[defect], scores[~defect]
    if not len(defects) or not len(good):
        return None
    random = np.random.default_rng(seed)
    levels, level = np.unique(-np.concatenate([defects, good]), return_inverse=True)  # the highest score first
    drawn = []
    for _ in range(BOOTSTRAP_DRAWS):
        times = np.concatenate(
            [np.bincount(random.integers(n, size=n), minlength=n) for n in (len(defects), len(good))]
        )
        hits = np.bincount(level[: len(defects)], times[: len(defects)], len(levels))
        stopped = np.bincount(level, times, len(levels)).cumsum()
        drawn.append(np.sum(hits * hits.cumsum() / np.maximum(stopped, 1)) / len(defects))
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Rate(float(average_precision_score(defect, scores)), float(low), float(high))


@dataclass(frozen=True)
class ClassScore:
    """The recall and precision of one class, by the most probable class."""

    name: str
    recall: Proportion
    precision: Proportion


def score_classes(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> list[ClassScore]:
    """Recall and precision of every class that the model knows.

    Args:
        counts: int [rows, columns]: images by their class and by the predicted one.
        rows: names of the images' classes.
        columns: names of the model's classes.
    """
    scores = []
    for column, name in enumerate(columns):
        own = counts[rows.index(name)] if name in rows else np.zeros(len(columns), int)
        right, predicted = int(own[column]), int(counts[:, column].sum())
        scores.append(ClassScore(name, Proportion.of(right, int(own.sum())), Proportion.of(right, predicted)))
    return scores


def count_confusions(
    truth: Sequence[str], predicted: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> np.ndarray:
    """Images by their class and by the predicted one, int [rows, columns].

    Args:
        truth: the class of each image, from ``rows``.
        predicted: the predicted class of each image, from ``columns``.
        rows, columns: class names; ``rows`` may have classes that the model does not know.
    """
    names = list(dict.fromkeys([*rows, *columns]))
    counts = confusion_matrix(list(truth), list(predicted), labels=names)
    return counts[np.ix_([names.index(name) for name in rows], [names.index(name) for name in columns])]


def _newcombe(area: float, defects: int, good: int) -> tuple[float, float]:
    """The areas whose distance from the one found is 1.96 standard errors, by the variance of Hanley and McNeil (1982)
    with both numbers of images replaced by their mean."""
    quantile = float(norm.ppf((1 + CONFIDENCE) / 2))
    mean = (defects + good) / 2 - 1

    def excess(end: float) -> float:
        spread = 1 + mean * (1 - end) / (2 - end) + mean * end / (1 + end)
        return abs(area - end) - quantile * sqrt(end * (1 - end) * spread / (defects * good))

    tiny = 1e-12
    low = 0.0 if area <= tiny else float(brentq(excess, 0.0, min(area, 1 - tiny)))
    high = 1.0 if area >= 1 - tiny else float(brentq(excess, max(area, tiny), 1.0))
    return low, high
