"""Protocol: scikit-learn's linear classifier on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from multilevel.levels.tasks.classification import CLASSIFICATION_METRICS, classification_metrics, unbalanced
from multilevel.recipes.data.tiles import Pictures
from multilevel.recipes.evaluation.folds import classifiable_folds, out_of_fold
from multilevel.recipes.evaluation.protocols.base import EvaluationProtocol, Trial, class_probabilities
from multilevel.solvers.ranges import PositiveNumber

#: Inverse regularization strengths for the linear probe to choose from, strongest regularization first.
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
DEFAULT_STRENGTH = 1.0  # scikit-learn's, where no image can be held out
ITERATIONS = 1000
TOLERANCE = 1e-5  # of the gradient; at 1e-6 no accuracy on the digits or planted signals changes, at 1e-4 some do
FOLDS = 5
FEW, VERY_FEW = 2000, 200  # below FEW images all folds are held out in turn, below VERY_FEW in REPEATS divisions
REPEATS = 5


@dataclass(kw_only=True)
class LinearProbe(EvaluationProtocol):
    """Fits multinomial logistic regression by L-BFGS, on images without augmentation; held-out training images choose
    its regularization, by the metric in the table. Unbalanced classes have equal weight, unless that metric is the
    accuracy.

    Args:
        strength: inverse strength of the regularization. None: held-out training images choose it.
    """

    title = "linear probe"

    strength: PositiveNumber | None = None

    def predict(self, trial: Trial) -> np.ndarray:
        features, scored = trial.features()
        labels, groups = trial.fitted.labels.numpy(), trial.fitted.groups.numpy()
        pictures, metric = trial.fitted.pictures, _metric(trial)
        probe = fit_linear_probe(features, labels, trial.seed, metric, groups, pictures, self.strength)
        return class_probabilities(probe, scored, len(trial.setup.data.class_names))

    def settled(self, trial: Trial) -> LinearProbe:
        if self.strength is not None:
            return self
        fitted, (features, _) = trial.fitted, trial.features()
        labels, groups = fitted.labels.numpy(), fitted.groups.numpy()
        strength = choose_strength(features, labels, trial.seed, _metric(trial), groups, fitted.pictures)
        return replace(self, strength=strength)


def _metric(trial: Trial) -> str:
    """The metric in the table; where the task has other metrics, that shows the accuracy of this protocol."""
    return trial.metric if trial.metric in CLASSIFICATION_METRICS else "accuracy"


def fit_linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    seed: int,
    metric: str = "accuracy",
    groups: np.ndarray | None = None,
    pictures: Pictures | None = None,
    strength: float | None = None,
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
        pictures: that the images are tiles of, by which the strength is chosen; None without tiles.
        strength: that of the regularization, inverse; None: that of ``choose_strength``.

    Returns:
        A scaler and a classifier, with ``predict`` and ``predict_proba`` for features [M, D].

    Warns:
        ConvergenceWarning: the last fit stopped after ``ITERATIONS`` iterations without converging.

    >>> probe = fit_linear_probe(np.float32([[0], [1], [9], [10]]), np.array([0, 0, 1, 1]), seed=0)
    >>> probe.predict(np.float32([[2], [8]]))
    array([0, 1])
    """
    scaler = StandardScaler().fit(features)
    if strength is None:
        strength = choose_strength(features, labels, seed, metric, groups, pictures)
    probe = _new_probe(labels, metric).set_params(C=strength)
    _fit(probe, scaler.transform(features), labels)
    if probe.n_iter_.max() >= ITERATIONS:
        message = f"the linear probe stopped after {ITERATIONS} iterations without converging"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return make_pipeline(scaler, probe)


def choose_strength(
    features: np.ndarray,
    labels: np.ndarray,
    seed: int,
    metric: str,
    groups: np.ndarray | None = None,
    pictures: Pictures | None = None,
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
        pictures: that the images are tiles of; the metric is then that of pictures, which are counted, too.
    """
    every = np.arange(len(labels))
    groups = every if groups is None else groups
    pictures = Pictures(every, every, labels) if pictures is None else pictures
    classes = int(max(labels.max(), pictures.labels.max())) + 1
    repeats = REPEATS if len(pictures) < VERY_FEW else 1

    def path(fit: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Probabilities [H, strengths, classes]; each fit starts from the previous one."""
        scaler = StandardScaler().fit(features[fit])
        fitted, scored = scaler.transform(features[fit]), scaler.transform(features[held])
        probe = _new_probe(labels, metric)
        probes = (_fit(probe.set_params(C=strength), fitted, labels[fit]) for strength in STRENGTHS)
        return np.stack([class_probabilities(fit_probe, scored, classes) for fit_probe in probes], axis=1)

    totals = np.zeros(len(STRENGTHS))
    for repeat in range(repeats):
        folds = classifiable_folds(labels, groups, FOLDS, seed + repeat)
        if not folds:
            return DEFAULT_STRENGTH
        held, probabilities = out_of_fold(path, folds if len(pictures) < FEW else folds[:1])
        scored_pictures = pictures[held]
        for index, tried in enumerate(probabilities.swapaxes(0, 1)):
            totals[index] += classification_metrics(*scored_pictures.predictions(tried)).get(metric, 0.0)
    return STRENGTHS[int(totals.argmax())]  # argmax takes the first of equals


def _new_probe(labels: np.ndarray, metric: str) -> LogisticRegression:
    balanced = metric != "accuracy" and unbalanced(np.unique(labels, return_counts=True)[1].tolist())
    options: dict[str, Any] = {"class_weight": "balanced" if balanced else None, "warm_start": True}
    return LogisticRegression(max_iter=ITERATIONS, tol=TOLERANCE, **options)


def _fit(probe: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `fit_linear_probe` warns once, in one line
        return probe.fit(features, labels)
