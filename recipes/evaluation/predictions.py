"""Class probabilities of the scored images and, out of fold, of the labelled training images, for thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from multilevel.recipes.data import Split
from multilevel.recipes.evaluation.evaluate import extract_features, label_pool, scored_part
from multilevel.recipes.evaluation.folds import grouped_folds, out_of_fold
from multilevel.recipes.evaluation.labels import Amount, draw_labels
from multilevel.recipes.evaluation.protocols import Candidate, Setup, Trial
from multilevel.recipes.evaluation.protocols.base import FrozenFeaturesProtocol
from multilevel.recipes.evaluation.settings import EvaluationSettings

FOLDS = 3  # as for the choice of the exported head


@dataclass(frozen=True)
class Predictions:
    """The probabilities that a protocol gives labelled images.

    Attributes:
        fitted_labels: int64 [F], of training images that were held out once; empty if none can be.
        fitted: float64 [F, classes], each by a fit to the other folds.
        labels: int64 [M], of the scored images.
        scored: float64 [M, classes], by a fit to all training images.
        images: training images that the protocol was fitted to.
    """

    fitted_labels: np.ndarray
    fitted: np.ndarray
    labels: np.ndarray
    scored: np.ndarray
    images: int


def predict(
    candidate: Candidate, setup: Setup, settings: EvaluationSettings, protocol: FrozenFeaturesProtocol, amount: Amount
) -> Predictions:
    """Fit a protocol as ``evaluate_features`` does, and once more without each of three folds, which it then predicts.

    Folds keep classes in proportion and the photographs of one part together. No scored image takes part in a fit.

    Args:
        candidate: the encoder.
        setup: data, task and device.
        settings: seed, batch size, ``max_images``, and the split to score.
        protocol: the protocol.
        amount: the labels to fit to.

    Raises:
        DataError: no labels, no images to score, or features that are not finite.
    """
    data, scored = setup.data, scored_part(setup.data, settings)
    pool = label_pool(data, settings)
    fitted = _subset(data.train, pool[draw_labels(data.train.labels, pool, amount, settings.seed)])
    features, scored_features = (
        extract_features(
            candidate.features, data, part, torch.arange(len(part)), settings.batch_size, setup.device, candidate.name
        )
        for part in (fitted, scored)
    )
    labels, groups = fitted.labels.numpy(), fitted.groups.numpy()
    metric = settings.metric or setup.task.headline

    def fit_predict(fit: np.ndarray, part: Split, part_features: np.ndarray) -> np.ndarray:
        own = features[fit]
        trial = Trial(
            candidate, setup, _subset(fitted, torch.from_numpy(fit)), part, lambda: (own, part_features), metric,
            settings.neighbours, settings.batch_size, settings.seed,
        )  # fmt: skip
        return protocol.probabilities(trial)

    folds = [
        fold for fold in grouped_folds(labels, groups, FOLDS, settings.seed) if len(np.unique(labels[fold[0]])) > 1
    ]
    positions, held_out = np.arange(0), np.zeros((0, len(data.class_names)))
    if folds:
        positions, held_out = out_of_fold(
            lambda fit, held: fit_predict(fit, _subset(fitted, torch.from_numpy(held)), features[held]), folds
        )
    probabilities = fit_predict(np.arange(len(labels)), scored, scored_features)
    return Predictions(labels[positions], held_out, scored.labels.numpy(), probabilities, len(labels))


def _subset(part: Split, positions: torch.Tensor) -> Split:
    return replace(part, indices=part.indices[positions])
