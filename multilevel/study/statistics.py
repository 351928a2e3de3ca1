"""Means and paired differences over seeds, and the decision they support."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median, stdev
from typing import Literal

from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """One quantity over seeds; the interval is None with only one seed or without any spread."""

    mean: float
    median: float
    interval: Interval | None
    seeds: int


@dataclass(frozen=True)
class PairedComparison:
    """An arm against the baseline, seed by seed.

    Args:
        differences: arm - baseline, for each seed that both have.
        mean, median: of the differences.
        interval: 95%, by Student's t; None if it is undefined (one seed, or no spread).
        deviation: standard deviation of the differences; None with one seed.
        effect_size: mean / deviation (Cohen's d of pairs); None without a deviation.
        p_value: p-value of the paired t test; None without an interval.
        decision: pays, does not pay, or not decided.
        more_seeds: about how many more seeds would decide it; None if more seeds would not, or the spread is unknown.
        bound: 1 if every score of both is closer to it than the smallest worthwhile difference; the score of chance if
            no score is that far above it, or both means are within the noise of chance; else None.
    """

    differences: dict[int, float]
    mean: float
    median: float
    interval: Interval | None
    deviation: float | None
    effect_size: float | None
    p_value: float | None
    decision: Literal["pays", "does not pay", "not decided"]
    more_seeds: int | None
    bound: float | None


def summarize_seeds(values: Sequence[float]) -> Summary:
    """Mean, median and 95% interval of the mean over seeds, by Student's t."""
    interval = _interval(values) if min(values) < max(values) else None
    return Summary(fmean(values), median(values), interval, len(values))


def compare_pairs(
    arm: Mapping[int, float],
    baseline: Mapping[int, float],
    minimum_effect: float,
    chance: float = 0.0,
    noise: float = 0.0,
) -> PairedComparison:
    """The paired t test over the seeds that both have.

    The arm pays if the whole interval of the mean difference is above 0 and part of it is above ``minimum_effect``. It
    does not pay if the whole interval is below ``minimum_effect``, unless every score is too close to chance or 1 for
    such a difference. Arms at chance never pay.

    Args:
        arm, baseline: the score of each seed, from 0 to 1; the larger the better.
        minimum_effect: the smallest worthwhile difference, above 0.
        chance: the score without skill.
        noise: how far above chance a score without skill may be, by the draw of the scored images.

    Raises:
        ValueError: the arms have no seed in common.
    """
    differences = {seed: arm[seed] - baseline[seed] for seed in sorted(arm.keys() & baseline.keys())}
    values = list(differences.values())
    if not values:
        raise ValueError("the arms have no seed in common")
    both = [[scores[seed] for seed in differences] for scores in (arm, baseline)]
    bound = None
    if max(map(max, both)) < chance + minimum_effect or max(map(fmean, both)) < chance + noise:
        bound = chance
    elif min(map(min, both)) > 1 - minimum_effect:
        bound = 1.0
    mean, middle = fmean(values), median(values)
    deviation = stdev(values) if len(values) > 1 else None
    if not deviation or deviation < 1e-12:  # all differences are equal up to rounding
        return PairedComparison(differences, mean, middle, None, deviation, None, None, "not decided", None, bound)
    interval = _interval(values)
    decision = decide(interval, minimum_effect)
    too_close = bound is not None and decision == "does not pay" and interval[1] >= 0
    if too_close or (bound == chance and decision == "pays"):
        decision = "not decided"
    more_seeds = None
    if decision == "not decided" and bound is None:
        more_seeds = max(1, seeds_needed(max(mean, minimum_effect - mean), deviation) - len(values))
    effect_size, p_value = mean / deviation, float(stats.ttest_1samp(values, 0.0).pvalue)
    return PairedComparison(
        differences, mean, middle, interval, deviation, effect_size, p_value, decision, more_seeds, bound
    )


def decide(interval: Interval, minimum_effect: float) -> Literal["pays", "does not pay", "not decided"]:
    """The decision from a 95% interval of the difference."""
    low, high = interval
    if high < minimum_effect:
        return "does not pay"
    return "pays" if low > 0 else "not decided"


def seeds_needed(effect: float, deviation: float, power: float = POWER) -> int:
    """The smallest number of pairs for which a paired t test detects an effect (two-sided, 5%).

    By the noncentral t distribution (Cohen 1988, section 2.5; what G*Power and statsmodels compute).

    Args:
        effect: the mean difference to detect, above 0.
        deviation: the standard deviation of the differences, above 0.
        power: the probability of detecting it.
    """
    enough = 2
    while _power(enough, effect / deviation) < power:
        enough *= 2
    return 2 + bisect_left(range(2, enough), power, key=lambda pairs: _power(pairs, effect / deviation))


def _power(pairs: int, effect_size: float) -> float:
    """The probability that a paired t test detects an effect with the right sign."""
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, pairs - 1)
    return float(stats.nct.sf(critical, pairs - 1, effect_size * sqrt(pairs)))


def _interval(values: Sequence[float]) -> Interval:
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return (float(interval.low), float(interval.high))
