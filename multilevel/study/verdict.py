"""States the verdict in one sentence, including the cost."""

from __future__ import annotations

from multilevel.study.statistics import PairedComparison


def points(value: float) -> str:
    """A share in percentage points: 0.0213 is 2.1."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def sentence(
    comparison: PairedComparison, arm: str, baseline: str, score: str, minimum_effect: float, cost: str
) -> str:
    """The verdict on a comparison, in words.

    Args:
        comparison: the comparison of the arm with the baseline.
        arm, baseline: their names.
        score: name of the score, such as "linear probe accuracy".
        minimum_effect: the smallest worthwhile difference.
        cost: a clause that says how much longer it took.
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
    needed = _needed(comparison, minimum_effect)
    return f"{seeds} cannot decide whether {arm} masks pay: {finding}; {needed}; {cost}."


def _needed(comparison: PairedComparison, minimum_effect: float) -> str:
    """The remedy for an undecided comparison."""
    if comparison.bound is not None:
        remedy = "train longer" if comparison.bound == 0 else "take fewer labels"
        cause = f"every score is within {points(minimum_effect)} points of {points(comparison.bound)}"
        return f"{cause}: {remedy}, or another metric"
    if len(comparison.differences) == 1:
        return "one seed cannot show the role of chance: take at least 5"
    if comparison.more_seeds is not None:
        return f"about {comparison.more_seeds} more would be needed"
    if comparison.mean:
        return "all seeds gave exactly this difference, so the role of chance is unknown: take more seeds"
    return "all seeds gave the same difference: the test images are too few, or too easy, to tell"


def cost_clause(equal: str, seconds: float, updates: float) -> str:
    """The cost of an arm relative to the baseline.

    Args:
        equal: the budget that was equal for both.
        seconds: the arm's seconds of training divided by the baseline's.
        updates: the arm's pretraining updates divided by the baseline's.
    """
    if equal == "time":
        return f"in {seconds:.2f} times the training time they made {updates:.2f} times as many pretraining updates"
    return f"training took {seconds:.2f} times as long"
