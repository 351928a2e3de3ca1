"""The loss of a linear probe on held-out training images: a smooth measure of an encoder's features."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from multilevel.recipes.data import ImageData
from multilevel.recipes.evaluation.evaluate import extract_features, stratified_positions
from multilevel.recipes.evaluation.protocols import Encoder
from multilevel.recipes.evaluation.protocols.linear_probe import STRENGTHS
from multilevel.solvers import DataError

ITERATIONS, TOLERANCE = 1000, 1e-6


class ProbeLoss:
    """The mean cross-entropy of a logistic regression on an encoder's features, refitted in every call.

    It is fitted to the images of ``data.finetune`` and measured on those of ``data.mask``, which are labelled training
    images too: no validation or test image is read. The strength of its regularization is the one of ``STRENGTHS`` with
    the lowest loss at the encoder's first weights, and stays, so that the loss is smooth in the weights.

    Args:
        encoder: normalized images [B, C, H, W] to features [B, D].
        data: the images.
        device: of the encoder.
        batch_size: images to encode at once.
        limit: largest number of images in either part, every class in proportion.
        seed: seed of the choice of these images.

    Raises:
        DataError: no labels, or a part without images.
    """

    def __init__(
        self, encoder: Encoder, data: ImageData, device: torch.device, batch_size: int, limit: int = 2000, seed: int = 0
    ) -> None:
        if not data.labelled or not len(data.finetune) or not len(data.mask):
            raise DataError("a probe needs labelled images in the parts of finetuning and of the masking network")
        self._parts = [(part, stratified_positions(part.labels, limit, seed)) for part in (data.finetune, data.mask)]
        self._features = partial(
            extract_features, encoder, data, batch_size=batch_size, device=device, name="encoder in a replay"
        )
        measured = self._measured()
        self.strength = min(STRENGTHS, key=lambda strength: _loss(strength, *measured))

    def __call__(self) -> float:
        return _loss(self.strength, *self._measured())

    def _measured(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Features [N, D] and labels [N] to fit to, and [M, D] and [M] to measure the loss on."""
        fitted, scored = (
            (self._features(part, positions).astype(np.float64), part.labels[positions].numpy())
            for part, positions in self._parts
        )
        return *fitted, *scored


def _loss(strength: float, fitted: np.ndarray, labels: np.ndarray, scored: np.ndarray, truth: np.ndarray) -> float:
    scaler = StandardScaler().fit(fitted)
    probe = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=TOLERANCE)
    probe.fit(scaler.transform(fitted), labels)
    known = np.isin(truth, probe.classes_)
    predicted = probe.predict_proba(scaler.transform(scored[known]))
    return float(log_loss(truth[known], predicted, labels=probe.classes_))
