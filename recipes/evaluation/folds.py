"""Cross-validation in which images that belong together stay together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

#: The positions of the images to fit to and of the images held out: int64 [F] and int64 [H].
Fold = tuple[np.ndarray, np.ndarray]
FEW_FOLDS = 3  # for predictions by which heads and thresholds are chosen: some heads are slow to fit


def grouped_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[Fold]:
    """Divide images into folds with every class in proportion and no group in two folds, by scikit-learn.

    Every image is held out in exactly one fold. There are fewer folds where there are fewer groups, or fewer images of
    the largest class. Images of a class that has fewer groups than there are folds are missing from some held-out
    parts; a class of a single group is missing from the images to fit to where that group is held out.

    Args:
        labels: int64 [N].
        groups: int64 [N]; images with equal numbers belong together.
        folds: number of folds, at least 2.
        seed: seed of the division.

    Returns:
        The folds; empty if the images cannot be divided, which takes two groups and two images of one class.

    >>> labels, groups = np.array([0, 0, 0, 1, 1, 1]), np.array([5, 5, 6, 7, 7, 8])
    >>> [(fit.tolist(), held.tolist()) for fit, held in grouped_folds(labels, groups, 2, seed=0)]
    [([0, 1, 5], [2, 3, 4]), ([2, 3, 4], [0, 1, 5])]
    """
    count = len(np.unique(groups))
    alone = count == len(groups)
    folds = min(folds, count, np.unique(labels, return_counts=True)[1].max())
    if folds < 2:
        return []
    # without groups, StratifiedKFold makes such folds too, and a hundred times as fast
    kind = StratifiedKFold if alone else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        divided = list(kind(folds, shuffle=True, random_state=seed).split(labels, labels, None if alone else groups))
    return [fold for fold in divided if len(fold[0]) and len(fold[1])]


def classifiable_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[Fold]:
    """The folds of ``grouped_folds`` with at least two classes to fit to."""
    return [fold for fold in grouped_folds(labels, groups, folds, seed) if len(np.unique(labels[fold[0]])) > 1]


def out_of_fold(
    fit_predict: Callable[[np.ndarray, np.ndarray], np.ndarray], folds: Sequence[Fold]
) -> tuple[np.ndarray, np.ndarray]:
    """Predict every image by a model that was fitted without its fold.

    Args:
        fit_predict: fits a model to the images at some positions (int64 [F]) and returns predictions [H, ...] for the
            images at other positions (int64 [H]). Whatever it learns from data, such as means and scales, it must learn
            from the first.
        folds: folds of ``grouped_folds``, all or some.

    Returns:
        The positions of all images held out, int64 [M], sorted, and their predictions [M, ...].

    Raises:
        ValueError: no folds, or an image that is held out twice.

    >>> values = np.array([1.0, 2.0, 6.0])
    >>> folds = [(np.array([1, 2]), np.array([0])), (np.array([0]), np.array([1, 2]))]
    >>> out_of_fold(lambda fit, held: np.full(len(held), values[fit].mean()), folds)
    (array([0, 1, 2]), array([4., 1., 1.]))
    """
    if not folds:
        raise ValueError("no folds to predict")
    positions = np.concatenate([held for _, held in folds])
    order = np.argsort(positions)
    if len(np.unique(positions)) < len(positions):
        raise ValueError("an image is held out in two folds")
    return positions[order], np.concatenate([fit_predict(fit, held) for fit, held in folds])[order]
