"""Protocol: nearest neighbours among the training images' frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from multilevel.recipes.evaluation.protocols.base import FrozenFeaturesProtocol, Trial, class_probabilities


@dataclass(kw_only=True)
class NearestNeighbours(FrozenFeaturesProtocol):
    """A vote of the evaluation.neighbours nearest training images."""

    title = "nearest neighbours"

    def probabilities(self, trial: Trial) -> np.ndarray:
        features, scored = trial.features()
        classes = len(trial.setup.data.class_names)
        return nearest_neighbours(features, trial.fitted.labels.numpy(), scored, trial.neighbours, classes)


def nearest_neighbours(
    features: np.ndarray, labels: np.ndarray, scored: np.ndarray, neighbours: int, classes: int
) -> np.ndarray:
    """Predict by the vote of the nearest training images, by cosine distance, each weighted by 1 / distance.

    Args:
        features: float32 [N, D].
        labels: int64 [N].
        scored: float32 [M, D].
        neighbours: number of voting images, limited to N.
        classes: number of classes.

    Returns:
        Shares of the votes [M, classes].
    """
    voters = KNeighborsClassifier(min(neighbours, len(labels)), metric="cosine", weights="distance")
    return class_probabilities(voters.fit(features, labels), scored, classes)
