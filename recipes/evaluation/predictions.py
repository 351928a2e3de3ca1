"""Class probabilities of the scored images and, out of fold, of the labelled training images, for thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from multilevel.recipes.data import Split
from multilevel.recipes.evaluation.evaluate import (
    extract_features,
    label_pool,
    of_pictures,
    picture_labels,
    scored_part,
)
from multilevel.recipes.evaluation.folds import FEW_FOLDS, classifiable_folds, out_of_fold
from multilevel.recipes.evaluation.labels import Amount, draw_labels
from multilevel.recipes.evaluation.protocols import Candidate, EvaluationProtocol, Setup, Trial
from multilevel.recipes.evaluation.settings import EvaluationSettings


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
    candidate: Candidate, setup: Setup, settings: EvaluationSettings, protocol: EvaluationProtocol, amount: Amount
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
    pool, labels = label_pool(data, settings), picture_labels(data)
    chosen = draw_labels(labels, pool, amount, settings.seed)
    fitted = of_pictures(of_pictures(data.train, pool), chosen)
    features, scored_features = (
        extract_features(
            candidate.features, data, part, torch.arange(len(part)), settings.batch_size, setup.device, candidate.name
        )
        for part in (fitted, scored)
    )
    metric, classes = settings.metric or setup.task.headline, fitted.labels.numpy()

    def trial(fit: np.ndarray, part: Split, part_features: np.ndarray) -> Trial:
        own = features[fit]
        return Trial(
            candidate, setup, _subset(fitted, fit), part, lambda: (own, part_features), metric,
            settings.neighbours, settings.batch_size, settings.seed,
        )  # fmt: skip

    whole = trial(np.arange(len(fitted)), scored, scored_features)
    settled = protocol.settled(whole)  # other choices in the folds would give probabilities of other scales
    folds = classifiable_folds(classes, fitted.groups.numpy(), FEW_FOLDS, settings.seed)
    held_out = np.arange(0), np.zeros((0, len(data.class_names)))
    if folds:
        positions, predicted = out_of_fold(
            lambda fit, held: settled.predict(trial(fit, _subset(fitted, held), features[held])), folds
        )
        held_out = _subset(fitted, positions).pictures.predictions(predicted)
    return Predictions(*held_out, *scored.pictures.predictions(settled.predict(whole)), len(fitted.pictures))


def _subset(part: Split, positions: np.ndarray) -> Split:
    return replace(part, indices=part.indices[torch.from_numpy(positions)])
