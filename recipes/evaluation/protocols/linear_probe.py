"""Protocol: scikit-learn's linear classifier on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from multilevel.levels.tasks.classification import CLASSIFICATION_METRICS, classification_metrics
from multilevel.recipes.evaluation.protocols.base import EvaluationProtocol, Trial

#: Inverse regularization strengths for the linear probe to choose from, strongest regularization first.
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
DEFAULT_STRENGTH = 1.0  # scikit-learn's, where no image can be held out
ITERATIONS = 1000
TOLERANCE = 1e-5  # of the gradient; at 1e-6 no accuracy on the digits or planted signals changes, at 1e-4 some do


@dataclass(kw_only=True)
class LinearProbe(EvaluationProtocol):
    """Fits multinomial logistic regression by L-BFGS, on images without augmentation; held-out training images
    choose its regularization, by the metric in the table."""

    title = "linear probe"

    def metrics(self, trial: Trial) -> dict[str, float]:
        features, scored = trial.features()
        # where the task has other metrics, the table shows the accuracy of a protocol that needs classes
        metric = trial.metric if trial.metric in CLASSIFICATION_METRICS else "accuracy"
        predicted = linear_probe(features, trial.fitted.labels.numpy(), scored, trial.seed, metric)
        return classification_metrics(trial.scored.labels.numpy(), predicted)


def linear_probe(
    features: np.ndarray, labels: np.ndarray, scored: np.ndarray, seed: int, metric: str = "accuracy"
) -> np.ndarray:
    """Predict by multinomial logistic regression on standardized features.

    The strength of its L2 regularization is that of ``choose_strength``. The probe is then fitted to all training
    images by L-BFGS. No scored image has a part in the means, the scales or the strength.

    Args:
        features: float32 [N, D].
        labels: int64 [N], at least two classes.
        scored: float32 [M, D].
        seed: seed of the held-out split.
        metric: accuracy, balanced_accuracy or macro_f1, to choose the strength by.

    Returns:
        Predicted labels, int64 [M].

    Warns:
        ConvergenceWarning: the last fit stopped after ``ITERATIONS`` iterations without converging.

    >>> linear_probe(np.float32([[0], [1], [9], [10]]), np.array([0, 0, 1, 1]), np.float32([[2], [8]]), seed=0)
    array([0, 1])
    """
    scaler = StandardScaler().fit(features)
    probe = _new_probe(choose_strength(features, labels, seed, metric))
    _fit(probe, scaler.transform(features), labels)
    if probe.n_iter_.max() >= ITERATIONS:
        message = f"the linear probe stopped after {ITERATIONS} iterations without converging"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return probe.predict(scaler.transform(scored))


def choose_strength(features: np.ndarray, labels: np.ndarray, seed: int, metric: str) -> float:
    """The best of ``STRENGTHS`` by a metric on a stratified fifth of the images; of equals the strongest
    regularization.

    The held-out fifth stands for the scored images, so it has no part in the means and scales either. Where it would
    leave a single class to fit to, the strength is ``DEFAULT_STRENGTH``.

    Args:
        features: float32 [N, D].
        labels: int64 [N].
        seed: seed of the held-out split.
        metric: accuracy, balanced_accuracy or macro_f1.
    """
    counts = np.unique(labels, return_counts=True)[1]
    by_class = labels if counts.min() >= 2 and len(labels) >= 10 * len(counts) else None
    parts = train_test_split(features, labels, test_size=0.2, random_state=seed, stratify=by_class)
    fit_features, held_features, fit_labels, held_labels = parts
    if len(np.unique(fit_labels)) < 2:
        return DEFAULT_STRENGTH
    scaler = StandardScaler().fit(fit_features)
    fit_features, held_features = scaler.transform(fit_features), scaler.transform(held_features)
    probe = _new_probe(STRENGTHS[0])

    def held_out(strength: float) -> float:
        predicted = _fit(probe.set_params(C=strength), fit_features, fit_labels).predict(held_features)
        return classification_metrics(held_labels, predicted)[metric]

    return max(STRENGTHS, key=held_out)  # each fit starts from the previous one; max keeps the first of equals


def _new_probe(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)


def _fit(probe: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `linear_probe` warns once, in one line
        return probe.fit(features, labels)
