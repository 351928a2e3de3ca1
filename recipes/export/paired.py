"""Compares two classifiers on the same labelled images: paired differences, their intervals, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest, norm

RESAMPLES = 2000
CHUNK = 100  # resamples at a time, which bounds the memory
CONFIDENCE, POWER = 0.95, 0.8
FEWEST = 5  # images or groups of a class, below which nothing is decided
#: Outcomes of the pairs that are added to those of each class (Agresti and Min 2005): 1 if only the new model is right.
ADDED_PAIRS, ADDED_OUTCOMES = 2, np.array([1, -1, 0, 0])

Verdict = Literal["promote", "keep", "not decided"]


@dataclass(frozen=True)
class Predictions:
    """A model's answers for N images.

    Attributes:
        predicted: int [N], number of the predicted class; -1 for a class that is none of the images'.
        probabilities: float [N, classes]; NaN for a class that the model does not know.
    """

    predicted: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Row:
    """One measure of both models, from 0 to 1, and the 95% interval of new - old."""

    name: str
    images: int
    old: float
    new: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        return self.new - self.old


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        balanced_accuracy: mean recall of the classes.
        area: mean over the classes that both know of the area under the ROC curve, class against rest, which for two
            classes is the area; None with fewer than two such classes.
        accuracy: share of the images that are labelled right.
        recalls: a row for each class.
        p_value: McNemar's exact test of equal accuracies; None with groups, whose images are not independent.
        units: independent units: groups, or images without groups.
        fewest: units of the class that has fewest.
    """

    balanced_accuracy: Row
    area: Row | None
    accuracy: Row
    recalls: tuple[Row, ...]
    p_value: float | None
    units: int
    fewest: int


def compare(
    labels: np.ndarray,
    class_names: Sequence[str],
    old: Predictions,
    new: Predictions,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare two models by a paired bootstrap.

    Groups are drawn with replacement (Field and Welsh 2007), among those with images of the same classes, so that the
    numbers of the classes hardly change; without groups each image is one. Intervals are percentiles. Those of recalls
    and accuracies have two pairs of random outcomes added (Agresti and Min 2005): the bootstrap by itself would give
    an interval without width if the models differ on no image of a class, however few there are.

    Args:
        labels: int [N], the class of each image; every class occurs.
        class_names: names of the classes, by number.
        old: answers of the old model.
        new: answers of the new model.
        groups: int [N], equal for images that belong together; None: every image is independent.
        seed: seed of the draws.
    """
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    draws = Draws(labels, units, seed)
    before, after = old.predicted == labels, new.predicted == labels
    outcomes = after.astype(float) - before
    members = [labels == number for number in range(len(class_names))]
    resampled = np.stack([draws.means(outcomes, member) for member in members])

    recalls = tuple(
        Row(f"recall of {name}", int(member.sum()), _mean(before[member]), _mean(after[member]), interval)
        for name, member, interval in zip(class_names, members, map(_interval, resampled), strict=True)
    )
    count, everything = len(labels), np.full(len(labels), True)
    mean_recalls = _mean([row.old for row in recalls]), _mean([row.new for row in recalls])
    accuracy_interval = _interval(draws.means(outcomes, everything))
    return Comparison(
        Row("balanced accuracy", count, mean_recalls[0], mean_recalls[1], _interval(resampled.mean(0))),
        _compare_areas(labels, old, new, draws),
        Row("accuracy", count, _mean(before), _mean(after), accuracy_interval),
        recalls,
        mcnemar(int((outcomes == 1).sum()), int((outcomes == -1).sum())) if groups is None else None,
        int(units.max()) + 1,
        min(len(np.unique(units[member])) for member in members),
    )


def mcnemar(only_new: int, only_old: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947), a binomial test of the images that only one model labels
    right.

    >>> round(mcnemar(9, 1), 4)
    0.0215
    """
    differing = only_new + only_old
    return float(binomtest(only_new, differing).pvalue) if differing else 1.0


def decide(row: Row, comparison: Comparison, minimum_effect: float) -> Verdict:
    """The verdict on one measure.

    Promote if its whole interval is above 0 and part of it above ``minimum_effect``; keep if all of it is below
    ``minimum_effect``; otherwise, and with fewer than five units of a class or an interval without width, not decided.
    """
    low, high = row.interval
    if comparison.fewest < FEWEST or low == high:
        return "not decided"
    if high < minimum_effect:
        return "keep"
    return "promote" if low > 0 else "not decided"


def more_images(row: Row, minimum_effect: float) -> int | None:
    """About how many more images, of the same mix of classes, would decide with a probability of 80%; None if the
    interval has no width.

    The interval's width falls with the root of the number of images; the difference stays as it is.
    """
    if row.interval[0] == row.interval[1]:
        return None
    deviation = (row.interval[1] - row.interval[0]) / (2 * norm.ppf((1 + CONFIDENCE) / 2)) * np.sqrt(row.images)
    effect = max(row.difference, minimum_effect - row.difference)
    needed = ((norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(POWER)) * deviation / effect) ** 2
    return max(1, int(np.ceil(needed)) - row.images)


class Draws:
    """Bootstrap draws of units, the same for every measure.

    Args:
        labels: int [N].
        units: int [N], 0 to the number of units - 1.
        seed: seed of the draws.
    """

    def __init__(self, labels: np.ndarray, units: np.ndarray, seed: int) -> None:
        self.units = units
        self.random = np.random.default_rng(seed)
        classes: list[set[int]] = [set() for _ in range(int(units.max()) + 1)]
        for unit, label in zip(units.tolist(), labels.tolist(), strict=True):
            classes[unit].add(label)
        kinds = [tuple(sorted(of_unit)) for of_unit in classes]
        self.counts = np.empty((RESAMPLES, len(kinds)))
        for kind in sorted(set(kinds)):
            alike = np.array([position for position, other in enumerate(kinds) if other == kind])
            self.counts[:, alike] = self.random.multinomial(len(alike), np.full(len(alike), 1 / len(alike)), RESAMPLES)

    def means(self, outcomes: np.ndarray, member: np.ndarray) -> np.ndarray:
        """The mean outcome [RESAMPLES] of the images in ``member``, bool [N], and of the added pairs."""
        size = self.counts.shape[1]
        totals = np.bincount(self.units[member], outcomes[member], size)
        numbers = np.bincount(self.units[member], minlength=size)
        typical = numbers[numbers > 0].mean()  # an added pair weighs as much as a group
        added = self.random.multinomial(ADDED_PAIRS, np.full(4, 1 / 4), RESAMPLES) @ ADDED_OUTCOMES
        return (self.counts @ totals + typical * added) / (self.counts @ numbers + typical * ADDED_PAIRS)

    def weights(self) -> Iterator[np.ndarray]:
        """How often each image was drawn, [CHUNK, N] at a time."""
        for start in range(0, RESAMPLES, CHUNK):
            yield self.counts[start : start + CHUNK][:, self.units]


def _compare_areas(labels: np.ndarray, old: Predictions, new: Predictions, draws: Draws) -> Row | None:
    known = ~(np.isnan(old.probabilities) | np.isnan(new.probabilities)).any(0)
    numbers = [number for number in np.flatnonzero(known) if 0 < (labels == number).sum() < len(labels)]
    if len(numbers) < 2:
        return None
    curves = [[roc(model.probabilities[:, number], labels == number) for number in numbers] for model in (old, new)]
    once = np.ones((1, len(labels)))
    whole = [_mean(np.array([area(once) for area in areas])) for areas in curves]
    resampled = []
    for weights in draws.weights():
        before, after = (np.mean([area(weights) for area in areas], axis=0) for areas in curves)
        resampled.append(after - before)
    return Row("area under the ROC curve", len(labels), whole[0], whole[1], _interval(np.concatenate(resampled)))


def roc(scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights [R, N] of the images to areas under the ROC curve [R].

    The area is the probability that a positive image has a higher score than a negative one, ties counted by half (Mann
    and Whitney 1947).

    Args:
        scores: [N].
        positive: bool [N].
    """
    order = np.argsort(scores, kind="stable")
    starts = np.unique(scores[order], return_index=True)[1]
    positive = positive[order]

    def area(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        positives = np.add.reduceat(weights * positive, starts, axis=1)
        negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
        below = negatives.cumsum(1) - negatives / 2
        return (positives * below).sum(1) / (positives.sum(1) * negatives.sum(1))

    return area


def _mean(values: np.ndarray | Sequence[float]) -> float:
    return float(np.mean(values))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
