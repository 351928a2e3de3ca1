"""States the verdict in one sentence, including the cost."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10

from multilevel.reports.texts import Texts
from multilevel.study.images import needed, step
from multilevel.study.statistics import PairedComparison
from multilevel.study.words import listed, seeds_in_words


def points(value: float) -> str:
    """A share in percentage points: 0.0213 is 2.1."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def times(value: float, error: float | None) -> str:
    """A ratio with the digits that its standard error leaves, at most two decimals; two digits if that is unknown.

    >>> times(1.7043, 0.02), times(1.7043, 0.3), times(17.043, 4.0), times(1.7043, None)
    ('1.70', '1.7', '17', '1.7')
    """
    if error is None:
        decimals = 1 - floor(log10(value))
    else:
        decimals = -floor(log10(error)) if error > 0 else 2
    return f"{value:.{min(max(decimals, 0), 2)}f}"


def opening(best: tuple[str, float], references: Mapping[str, float], score: str, texts: Texts) -> str:
    """A sentence that says which references the best arm does not surpass; empty if it surpasses all.

    Args:
        best: name and mean score of the arm with the highest.
        references: mean scores of the references.
        score: name of the score.
        texts: of the language.

    >>> means = {"raw pixels": 0.975, "untrained encoder": 0.9}
    >>> opening(("random", 0.922), means, "linear probe accuracy", Texts("en"))
    'No encoder here is better than raw pixels (97.5%): linear probe accuracy is 92.2% at best, with random masks.'
    """
    name, value = best
    better = [
        texts("study_reference_mean", name=texts.named("phrase", reference), mean=points(mean))
        for reference, mean in references.items()
        if mean >= value
    ]
    if not better:
        return ""
    return texts("study_opening", references=listed(better, "or", texts), score=score, best=points(value), arm=name)


def sentence(
    comparison: PairedComparison,
    arm: str,
    baseline: str,
    score: str,
    minimum_effect: float,
    cost: str,
    texts: Texts,
    too_few: str = "",
) -> str:
    """The verdict on a comparison, in words.

    Args:
        comparison: the comparison of the arm with the baseline.
        arm, baseline: their names.
        score: name of the score, such as "linear probe accuracy".
        minimum_effect: the smallest worthwhile difference.
        cost: a clause that says how much longer it took.
        texts: of the language.
        too_few: a clause that says how few the scored images are, if they are too few for such a difference.
    """
    seeds, mean = seeds_in_words(len(comparison.differences), texts), comparison.mean
    if mean:
        side, difference = "study_higher" if mean > 0 else "study_lower", points(abs(mean))
        finding = texts(side, score=score, difference=difference, baseline=baseline)
    else:
        finding = texts("study_same", score=score, baseline=baseline)
    if comparison.interval is not None:
        low, high = map(points, comparison.interval)
        interval = texts("interval", low=low, high=high)
        finding = texts("study_finding", finding=finding, interval=interval, seeds=seeds)
    if comparison.decision == "pays":
        return texts("study_pays", arm=arm, finding=finding, cost=cost)
    if comparison.decision == "does not pay":
        assert comparison.interval is not None
        worse = comparison.interval[1] < 0
        why = texts("study_worse") if worse else texts("study_too_little", effect=points(minimum_effect))
        return texts("study_does_not_pay", arm=arm, finding=finding, why=why, cost=cost)
    reason = _needed(comparison, minimum_effect, too_few, texts)
    return texts("study_not_decided", seeds=seeds, arm=arm, finding=finding, needed=reason, cost=cost)


def _needed(comparison: PairedComparison, minimum_effect: float, too_few: str, texts: Texts) -> str:
    """The reason and the remedy for an undecided comparison."""
    if comparison.bound == 1:
        return texts("study_needed_best", effect=points(minimum_effect))
    if comparison.bound is not None:
        return (
            texts("study_needed_chance", chance=points(comparison.bound))
            if comparison.bound
            else texts("study_needed_zero")
        )
    if too_few:
        return too_few
    if len(comparison.differences) == 1:
        return texts("study_needed_seeds")
    if comparison.more_seeds is not None:
        return texts("study_needed_more", count=comparison.more_seeds)
    return texts("study_needed_spread" if comparison.mean else "study_needed_training")


def too_few_images(metric: str, counts: Mapping[str, int], minimum_effect: float, split: str, texts: Texts) -> str:
    """A clause if one image changes the score by more than a worthwhile difference; empty otherwise.

    >>> too_few_images("accuracy", {"good": 30, "dent": 10}, 0.01, "test", Texts("en")).partition(": ")[2]
    'it takes at least 100 images'
    """
    change = step(metric, counts)
    if change is None or change <= minimum_effect:
        return ""
    count, each = needed(metric, counts, minimum_effect)
    return texts(
        "study_too_few",
        count=sum(counts.values()),
        split=texts.named("split", split),
        change=points(change),
        effect=points(minimum_effect),
        needed=texts("study_images_needed_each" if each else "study_images_needed", count=count),
    )


def cost_clause(equal: str, seconds: str, updates: float, texts: Texts) -> str:
    """The cost of an arm relative to the baseline.

    Args:
        equal: the budget that was equal for both.
        seconds: the arm's seconds of training divided by the baseline's, as text.
        updates: the arm's pretraining updates divided by the baseline's.
        texts: of the language.
    """
    if equal == "time":
        return texts("study_cost_time", seconds=seconds, updates=f"{updates:.2f}")
    return texts("study_cost_updates", seconds=seconds)
