"""How much a score depends on the scored images themselves: their number bounds what a study can tell."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from statistics import fmean

Z = 1.96  # 95%, two-sided


def step(metric: str, counts: Mapping[str, int]) -> float | None:
    """The most by which one image can change a score of a classification; None for other metrics or no images.

    For macro F1, the change of a recall stands for that of an F1.

    Args:
        metric: its name.
        counts: images of each class.

    >>> step("accuracy", {"good": 30, "dent": 10}), step("balanced_accuracy", {"good": 30, "dent": 10})
    (0.025, 0.05)
    """
    present = [count for count in counts.values() if count]
    if not present:
        return None
    if metric == "accuracy":
        return 1 / sum(present)
    if metric == "macro_roc_auc" and len(present) == 2:  # both areas are the same
        return 1 / min(present)
    known = ("balanced_accuracy", "macro_f1", "macro_roc_auc")
    return 1 / (len(present) * min(present)) if metric in known else None


def needed(metric: str, counts: Mapping[str, int], effect: float) -> tuple[int, bool]:
    """The fewest images that make the step of one image at most ``effect``, and whether it takes so many per class."""
    present = [count for count in counts.values() if count]
    if metric == "accuracy":
        return ceil(1 / effect), False
    shared = 1 if metric == "macro_roc_auc" and len(present) == 2 else len(present)
    return ceil(1 / (shared * effect)), True


def noise_at_chance(metric: str, counts: Mapping[str, int], chance: float) -> float:
    """Half the 95% interval, over draws of the scored images, of the score of a classifier without skill; 0 if unknown.

    Binomial for accuracy and for recalls; for areas under the ROC curve the variance of the rank sum (Mann and Whitney
    1947), with the mean over classes as a bound. A recall stands for an F1.

    Args:
        metric: its name.
        counts: images of each class.
        chance: the score without skill.
    """
    present = [count for count in counts.values() if count]
    total, classes = sum(present), len(present)
    if classes < 2:
        return 0.0
    if metric == "accuracy":
        return Z * sqrt(chance * (1 - chance) / total)
    if metric in ("balanced_accuracy", "macro_f1"):
        recall = 1 / classes
        return Z * sqrt(sum(recall * (1 - recall) / count for count in present)) / classes
    if metric == "macro_roc_auc":
        return Z * fmean(sqrt((total + 1) / (12 * count * (total - count))) for count in present)
    return 0.0
