"""Protocol: scikit-learn's linear classifier on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from multilevel.levels.tasks.classification import CLASSIFICATION_METRICS, classification_metrics, unbalanced
from multilevel.recipes.evaluation.folds import Fold, grouped_folds, out_of_fold
from multilevel.recipes.evaluation.protocols.base import FrozenFeaturesProtocol, Trial, class_probabilities

#: Inverse regularization strengths for the linear probe to choose from, strongest regularization first.
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
DEFAULT_STRENGTH = 1.0  # scikit-learn's, where no image can be held out
ITERATIONS = 1000
TOLERANCE = 1e-5  # of the gradient; at 1e-6 no accuracy on the digits or planted signals changes, at 1e-4 some do
FOLDS = 5
FEW, VERY_FEW = 2000, 200  # below FEW images all folds are held out in turn, below VERY_FEW in REPEATS divisions
REPEATS = 5


@dataclass(kw_only=True)
class LinearProbe(FrozenFeaturesProtocol):
    """Fits multinomial logistic regression by L-BFGS, on images without augmentation; held-out training images choose
    its regularization, by the metric in the table. Unbalanced classes have equal weight, unless that metric is the
    accuracy."""

    title = "linear probe"

    def probabilities(self, trial: Trial) -> np.ndarray:
        features, scored = trial.features()
        # where the task has other metrics, the table shows the accuracy of a protocol that needs classes
        metric = trial.metric if trial.metric in CLASSIFICATION_METRICS else "accuracy"
        labels, groups = trial.fitted.labels.numpy(), trial.fitted.groups.numpy()
        probe = fit_linear_probe(features, labels, trial.seed, metric, groups)
        return class_probabilities(probe, scored, len(trial.setup.data.class_names))


def fit_linear_probe(
    features: np.ndarray, labels: np.ndarray, seed: int, metric: str = "accuracy", groups: np.ndarray | None = None
) -> Pipeline:
    """Fit multinomial logistic regression on standardized features.

    The strength of its L2 regularization is that of ``choose_strength``. The probe is then fitted to all images by
    L-BFGS. If the classes are unbalanced and the metric is not the accuracy, each has the same total weight.

    Args:
        features: float32 [N, D].
        labels: int64 [N], at least two classes.
        seed: seed of the folds.
        metric: one of ``CLASSIFICATION_METRICS``, to choose the strength by.
        groups: int64 [N]; images with equal numbers are never on both sides of a fold. None: every image by itself.

    Returns:
        A scaler and a classifier, with ``predict`` and ``predict_proba`` for features [M, D].

    Warns:
        ConvergenceWarning: the last fit stopped after ``ITERATIONS`` iterations without converging.

    >>> probe = fit_linear_probe(np.float32([[0], [1], [9], [10]]), np.array([0, 0, 1, 1]), seed=0)
    >>> probe.predict(np.float32([[2], [8]]))
    array([0, 1])
    """
    scaler = StandardScaler().fit(features)
    probe = _new_probe(labels, metric).set_params(C=choose_strength(features, labels, seed, metric, groups))
    _fit(probe, scaler.transform(features), labels)
    if probe.n_iter_.max() >= ITERATIONS:
        message = f"the linear probe stopped after {ITERATIONS} iterations without converging"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return make_pipeline(scaler, probe)


def choose_strength(
    features: np.ndarray, labels: np.ndarray, seed: int, metric: str, groups: np.ndarray | None = None
) -> float:
    """The best of ``STRENGTHS`` by a metric on held-out images; of equals the strongest regularization.

    With fewer than 2,000 images each of five stratified folds is held out in turn, and the metric is that of all
    out-of-fold probabilities together; with fewer than 200, its mean over five divisions into folds. With more images,
    one fold is held out. Held-out images stand for the scored ones, so they have no part in the means and scales
    either. Where no image can be held out, the strength is ``DEFAULT_STRENGTH``.

    Args:
        features: float32 [N, D].
        labels: int64 [N].
        seed: seed of the folds.
        metric: one of ``CLASSIFICATION_METRICS``.
        groups: int64 [N]; images with equal numbers are never on both sides of a fold. None: every image by itself.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    kinds, known = np.unique(labels, return_inverse=True)
    repeats = REPEATS if len(labels) < VERY_FEW else 1

    def path(fit: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Probabilities [H, strengths, classes]; each fit starts from the previous one."""
        scaler = StandardScaler().fit(features[fit])
        fitted, scored = scaler.transform(features[fit]), scaler.transform(features[held])
        probe = _new_probe(labels, metric)
        probes = (_fit(probe.set_params(C=strength), fitted, known[fit]) for strength in STRENGTHS)
        return np.stack([class_probabilities(fit_probe, scored, len(kinds)) for fit_probe in probes], axis=1)

    totals = np.zeros(len(STRENGTHS))
    for repeat in range(repeats):
        folds = _usable(grouped_folds(labels, groups, FOLDS, seed + repeat), labels)
        if not folds:
            return DEFAULT_STRENGTH
        held, probabilities = out_of_fold(path, folds if len(labels) < FEW else folds[:1])
        scores = [classification_metrics(known[held], probabilities[:, index]) for index in range(len(STRENGTHS))]
        totals += [score.get(metric, 0.0) for score in scores]
    return STRENGTHS[int(totals.argmax())]  # argmax takes the first of equals


def _usable(folds: list[Fold], labels: np.ndarray) -> list[Fold]:
    """The folds with at least two classes to fit to."""
    return [fold for fold in folds if len(np.unique(labels[fold[0]])) > 1]


def _new_probe(labels: np.ndarray, metric: str) -> LogisticRegression:
    balanced = metric != "accuracy" and unbalanced(np.unique(labels, return_counts=True)[1].tolist())
    options: dict[str, Any] = {"class_weight": "balanced" if balanced else None, "warm_start": True}
    return LogisticRegression(max_iter=ITERATIONS, tol=TOLERANCE, **options)


def _fit(probe: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `fit_linear_probe` warns once, in one line
        return probe.fit(features, labels)
