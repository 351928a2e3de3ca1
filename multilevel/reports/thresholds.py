"""The score of a defect, and the choice of the score from which an image counts as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multilevel.solvers import DataError

RULES = ("false_alarms", "recall")


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it comes from.

    Attributes:
        value: an image whose score is at least this counts as a defect.
        rule: ``false_alarms``, ``recall``, or ``number`` for one that was given or stored as a number.
        source: ``out_of_fold`` (training images, by models that had not seen them), ``reference`` (training images,
            each compared with the others), ``stored`` (a number in the export), ``given`` (by the user), or ``folder``
            (the inspected images themselves, so that figures at it are optimistic).
        images: number of images that it was chosen on; 0 if it was stored or given.
    """

    value: float
    rule: str
    source: str
    images: int

    @property
    def is_optimistic(self) -> bool:
        """Whether the images it was chosen on are those it is checked on."""
        return self.source == "folder"


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


def defect_probability(probabilities: np.ndarray, good: int) -> np.ndarray:
    """1 - p(good) as the sum over the other classes, which rounds less.

    >>> defect_probability(np.array([[0.7, 0.2, 0.1]]), good=0).round(3).tolist()
    [0.3]
    """
    return np.minimum(np.delete(probabilities, good, axis=1).sum(1), 1.0)


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
