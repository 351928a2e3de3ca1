"""The usual protocols for frozen features, by scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

#: Inverse regularization strengths that the linear probe chooses from.
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
ITERATIONS = 200


def linear_probe(features: np.ndarray, labels: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    """Predict by multinomial logistic regression on standardized features.

    The strength of its L2 regularization is the one of ``STRENGTHS`` that does best on a fifth of the training
    images, held out by class; the probe is then fitted to all of them. Ends after at most ``ITERATIONS``
    iterations of L-BFGS, converged or not.

    Args:
        features: float32 [N, D].
        labels: int64 [N], at least two classes.
        others: float32 [M, D].
        seed: of the holding out.

    Returns:
        Predicted labels, int64 [M].
    """
    counts = np.unique(labels, return_counts=True)[1]
    by_class = labels if counts.min() >= 2 and len(labels) >= 10 * len(counts) else None
    parts = train_test_split(features, labels, test_size=0.2, random_state=seed, stratify=by_class)
    fit_features, held_features, fit_labels, held_labels = parts
    if len(np.unique(fit_labels)) < 2:  # too few images to hold any out
        return _probe(1.0, features, labels).predict(others)
    accuracies = [_probe(one, fit_features, fit_labels).score(held_features, held_labels) for one in STRENGTHS]
    return _probe(STRENGTHS[int(np.argmax(accuracies))], features, labels).predict(others)


def nearest_neighbours(features: np.ndarray, labels: np.ndarray, others: np.ndarray, neighbours: int) -> np.ndarray:
    """Predict by the vote of the nearest training images, by cosine distance, each weighted by 1 / distance.

    Args:
        features: float32 [N, D].
        labels: int64 [N].
        others: float32 [M, D].
        neighbours: how many vote; at most N do.

    Returns:
        Predicted labels, int64 [M].
    """
    voters = KNeighborsClassifier(min(neighbours, len(labels)), metric="cosine", weights="distance")
    return voters.fit(features, labels).predict(others)


def _probe(strength: float, features: np.ndarray, labels: np.ndarray) -> Pipeline:
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit on iterations is part of the protocol
        return probe.fit(features, labels)
