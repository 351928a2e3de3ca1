"""The operating point of a classifier: the probability of a defect from which a part is stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from multilevel.recipes.data.good import named_good
from multilevel.solvers import DataError, SettingError

RULES = ("false_alarms", "recall")
NUMBER = "number"
MAX_FALSE_ALARMS, MIN_RECALL = 0.02, 0.99


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of the probability of a defect, and how it was chosen.

    Attributes:
        good: the class of good parts; every other class is a defect.
        threshold: a part whose probability of a defect is at least this is stopped.
        rule: ``false_alarms`` (the lowest threshold with at most ``limit`` false alarms), ``recall`` (the highest that
            finds at least ``limit`` of the defects), or ``number`` (given).
        limit: a share of the good parts or of the defects; None for a number.
    """

    good: str
    threshold: float
    rule: str
    limit: float | None

    def record(self) -> dict[str, Any]:
        """The operating point as JSON."""
        return asdict(self)

    def describe(self) -> str:
        """A line about the operating point.

        >>> OperatingPoint("ok", 0.25, "false_alarms", 0.02).describe()
        'stopped from a probability of a defect (any class but ok) of 0.2500: at most 2% false alarms among held-out \
training images'
        """
        why = {"false_alarms": "at most {:g}% false alarms", "recall": "at least {:g}% of the defects found"}
        held_out = " among held-out training images"
        reason = why[self.rule].format(100 * self.limit) + held_out if self.limit is not None else "as given"
        return f"stopped from a probability of a defect (any class but {self.good}) of {self.threshold:.4f}: {reason}"


def choose_operating_point(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], good: str, rule: str, limit: float
) -> OperatingPoint:
    """Choose the threshold on held-out images.

    Args:
        probabilities: of images that the classifier was not fitted to, float64 [N, classes].
        labels: their classes, int64 [N].
        class_names: names of the classes, by label.
        good: the class of good parts.
        rule: ``false_alarms`` or ``recall``.
        limit: the largest share of false alarms, or the smallest share of defects found.

    Raises:
        DataError: none of these images is of the kind that the rule counts.

    >>> probabilities, labels = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([0, 0, 1])
    >>> round(choose_operating_point(probabilities, labels, ["ok", "dent"], "ok", "recall", 0.99).threshold, 2)
    0.6
    """
    index = list(class_names).index(good)
    threshold = choose_threshold(defect_probability(probabilities, index), labels != index, rule, limit)
    return OperatingPoint(good, threshold, rule, limit)


def defect_probability(probabilities: np.ndarray, good: int) -> np.ndarray:
    """1 - p(good) as the sum over the other classes, which rounds less.

    >>> defect_probability(np.array([[0.7, 0.2, 0.1]]), good=0).round(3).tolist()
    [0.3]
    """
    return np.minimum(np.delete(probabilities, good, axis=1).sum(1), 1.0)


def candidates(scores: np.ndarray) -> np.ndarray:
    """Every threshold that makes a difference, in ascending order: the lowest score, which stops everything; the middle
    between each two adjacent scores; and the next number above the highest, which stops nothing.

    >>> candidates(np.array([0.2, 0.6, 0.2])).tolist()
    [0.2, 0.4, 0.6000000000000001]
    """
    levels = np.unique(np.asarray(scores, np.float64))
    middles = levels[:-1] / 2 + levels[1:] / 2
    middles = np.where(middles <= levels[:-1], levels[1:], middles)  # rounding must not stop what lies below
    return np.concatenate([levels[:1], middles, np.nextafter(levels[-1:], np.inf)])


def share_stopped(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share of scores [N] that reach each threshold [T]."""
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    return (len(scores) - below) / len(scores)


def choose_threshold(scores: np.ndarray, defect: np.ndarray, rule: str, limit: float) -> float:
    """The lowest threshold with few enough false alarms, or the highest that finds enough defects.

    Args:
        scores: finite, float [N], higher for defects.
        defect: bool [N].
        rule: ``false_alarms`` or ``recall``.
        limit: the largest share of good images stopped, or the smallest share of defects found.

    Raises:
        DataError: there are no images of the kind that the rule counts.

    >>> scores, defect = np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, False, True, True])
    >>> choose_threshold(scores, defect, "false_alarms", 0.0), choose_threshold(scores, defect, "recall", 1.0)
    (0.25, 0.25)
    """
    counted = defect if rule == "recall" else ~defect
    if not counted.any():
        kind = "defects" if rule == "recall" else "good images"
        raise DataError(f"threshold={rule} needs {kind}, and there are none: give another rule or a number")
    cuts = candidates(scores)
    shares = share_stopped(scores[counted], cuts)
    return float(cuts[shares >= limit].max()) if rule == "recall" else float(cuts[shares <= limit].min())


def good_class(class_names: Sequence[str], requested: str | None = None) -> str | None:
    """The class of good parts: the requested one, or one with a usual name; None without either.

    Raises:
        SettingError: ``requested`` is not a class.

    >>> good_class(["scratch", "OK"]), good_class(["cat", "dog"])
    ('OK', None)
    """
    if requested is not None:
        if requested not in class_names:
            listed = ", ".join(class_names)
            expected = f"one of the classes {listed}" if listed else "null: neither model nor folder has classes"
            raise SettingError("good", requested, expected)
        return requested
    return named_good(class_names)


def threshold_number(text: str | None, rules: Sequence[str] = RULES) -> float | None:
    """A typed ``threshold=`` as a number; None if it is None or a rule.

    Raises:
        SettingError: it is neither a rule nor a finite number.

    >>> threshold_number("0.25"), threshold_number("recall")
    (0.25, None)
    """
    if text is None or text in rules:
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not -float("inf") < number < float("inf"):
        raise SettingError("threshold", text, f"{', '.join(rules)}, or a number")
    return number


def stored_operating_point(inspection: Mapping[str, Any], class_names: Sequence[str]) -> OperatingPoint | None:
    """The operating point in ``inspection.json``; None if it has none.

    Raises:
        ValueError: it does not fit the classes.
        TypeError: it is of another form.
    """
    entry = inspection.get("operating_point")
    if entry is None:
        return None
    point = OperatingPoint(**entry)
    if point.good not in class_names:
        raise ValueError(f"the good class {point.good!r} is not a class of the model")
    if not np.isfinite(point.threshold):
        raise ValueError(f"a threshold of {point.threshold}")
    return point
