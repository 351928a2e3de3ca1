"""States the verdict in one sentence, including the cost."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10

from multilevel.recipes.evaluation.scores import PHRASES
from multilevel.study.images import needed, step
from multilevel.study.statistics import PairedComparison


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


def opening(best: tuple[str, float], references: Mapping[str, float], score: str) -> str:
    """A sentence that says which references the best arm does not surpass; empty if it surpasses all.

    Args:
        best: name and mean score of the arm with the highest.
        references: mean scores of the references.
        score: name of the score.

    >>> opening(("random", 0.922), {"raw pixels": 0.975, "untrained encoder": 0.9}, "linear probe accuracy")
    'No encoder here is better than raw pixels (97.5%): linear probe accuracy is 92.2% at best, with random masks.'
    """
    name, value = best
    better = [
        f"{PHRASES.get(reference, reference)} ({points(mean)}%)"
        for reference, mean in references.items()
        if mean >= value
    ]
    if not better:
        return ""
    named = " or ".join(filter(None, [", ".join(better[:-1]), better[-1]]))
    return f"No encoder here is better than {named}: {score} is {points(value)}% at best, with {name} masks."


def sentence(
    comparison: PairedComparison,
    arm: str,
    baseline: str,
    score: str,
    minimum_effect: float,
    cost: str,
    too_few: str = "",
) -> str:
    """The verdict on a comparison, in words.

    Args:
        comparison: the comparison of the arm with the baseline.
        arm, baseline: their names.
        score: name of the score, such as "linear probe accuracy".
        minimum_effect: the smallest worthwhile difference.
        cost: a clause that says how much longer it took.
        too_few: a clause that says how few the scored images are, if they are too few for such a difference.
    """
    count = len(comparison.differences)
    seeds = f"{count} seed{'s' * (count != 1)}"
    mean, interval = comparison.mean, comparison.interval
    side = "higher" if mean > 0 else "lower"
    difference = f"{points(abs(mean))} points {side} than" if mean else "the same as"
    finding = f"{score} is {difference} with {baseline} masks"
    if interval is not None:
        finding += f" (95% interval {points(interval[0])} to {points(interval[1])}, {seeds})"
    if comparison.decision == "pays":
        return f"{arm} masks pay: {finding}; {cost}."
    if comparison.decision == "does not pay":
        assert interval is not None
        why = (
            "that is worse"
            if interval[1] < 0
            else f"less than the {points(minimum_effect)} points that count as worthwhile"
        )
        return f"{arm} masks do not pay: {finding}, {why}; {cost}."
    needed = _needed(comparison, minimum_effect, too_few)
    return f"{seeds} cannot decide whether {arm} masks pay: {finding}; {needed}; {cost}."


def _needed(comparison: PairedComparison, minimum_effect: float, too_few: str) -> str:
    """The reason and the remedy for an undecided comparison."""
    if comparison.bound == 1:
        cause = f"every score is within {points(minimum_effect)} points of 100.0"
        return f"{cause}: take fewer labels, or another metric"
    if comparison.bound is not None:
        chance = f" ({points(comparison.bound)}%, the majority class)" if comparison.bound else " (0.0%)"
        return f"all runs are at chance{chance}: train longer, or take other images or another metric"
    if too_few:
        return too_few
    if len(comparison.differences) == 1:
        return "one seed cannot show the role of chance: take at least 5"
    if comparison.more_seeds is not None:
        return f"about {comparison.more_seeds} more would be needed"
    if comparison.mean:
        return "all seeds gave exactly this difference, so the role of chance is unknown: take more seeds"
    return "all seeds gave the same scores with both: training longer may tell them apart, more seeds will not"


def too_few_images(metric: str, counts: Mapping[str, int], minimum_effect: float, split: str) -> str:
    """A clause if one image changes the score by more than a worthwhile difference; empty otherwise.

    >>> too_few_images("accuracy", {"good": 30, "dent": 10}, 0.01, "test").partition(": ")[2]
    'it takes at least 100 images'
    """
    change = step(metric, counts)
    if change is None or change <= minimum_effect:
        return ""
    return (
        f"one of the {sum(counts.values())} {split} images changes the score by {points(change)} points, more than the "
        f"{points(minimum_effect)} that count as worthwhile: it takes {needed(metric, counts, minimum_effect)}"
    )


def cost_clause(equal: str, seconds: str, updates: float) -> str:
    """The cost of an arm relative to the baseline.

    Args:
        equal: the budget that was equal for both.
        seconds: the arm's seconds of training divided by the baseline's, as text.
        updates: the arm's pretraining updates divided by the baseline's.
    """
    if equal == "time":
        return f"in {seconds} times the training time they made {updates:.2f} times as many pretraining updates"
    return f"training took {seconds} times as long"
