"""Scores of frozen encoders on the test split, the only place that reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from multilevel.recipes.data import ImageData, Part
from multilevel.recipes.data.strata import limit_rows, random_for
from multilevel.recipes.evaluation.protocols import linear_probe, nearest_neighbours
from multilevel.recipes.evaluation.settings import EvaluationSettings
from multilevel.solvers import DataError, SettingError

#: Normalized images [B, C, H, W] to features [B, D].
Encoder = Callable[[Tensor], Tensor]
LARGEST_RAW_SIZE = 32
Scores = dict[str, dict[str, float]]


def evaluate_features(
    encoders: Mapping[str, Encoder], data: ImageData, settings: EvaluationSettings, device: torch.device
) -> Scores:
    """Accuracy of a linear probe and of nearest neighbours on each encoder's features.

    Both are fitted to the labelled training images and scored on the test split.

    Args:
        encoders: by name; each is given normalized images on ``device``, without gradients.
        data: the set.
        settings: the protocols' settings.
        device: where the encoders are.

    Returns:
        ``{encoder: {"linear_probe": accuracy, "knn": accuracy}}``, shares of 1; and ``"majority class"``, what
        always answering with the most frequent training class comes to.

    Raises:
        DataError: no labels, no test images, or an encoder whose features are not finite.
        SettingError: ``max_images`` leaves images of one class only.
    """
    if not data.labelled:
        raise DataError("the images have no labels: there is nothing to evaluate features on")
    if not len(data.test):
        raise DataError("there are no test images: raise data.test_share, or give the set a test split")
    chosen = stratified_positions(data.train.labels, settings.max_images, settings.seed)
    labels, test_labels = data.train.labels[chosen].numpy(), data.test.labels.numpy()
    if len(np.unique(labels)) < 2:
        raise SettingError("evaluation.max_images", settings.max_images, "enough images for two classes")
    scores: Scores = {}
    for name, encoder in encoders.items():
        train = extract_features(encoder, data, data.train, chosen, settings.batch_size, device, name)
        every = torch.arange(len(data.test))
        test = extract_features(encoder, data, data.test, every, settings.batch_size, device, name)
        predicted = {
            "linear_probe": linear_probe(train, labels, test, settings.seed),
            "knn": nearest_neighbours(train, labels, test, settings.neighbours),
        }
        scores[name] = {protocol: float(np.mean(one == test_labels)) for protocol, one in predicted.items()}
    majority = float(np.mean(test_labels == np.bincount(labels).argmax()))
    scores["majority class"] = {"linear_probe": majority, "knn": majority}
    return scores


def raw_pixels(images: Tensor) -> Tensor:
    """The pixels themselves as features: [B, C, H, W] to [B, C * H * W].

    Images above 32 pixels a side are averaged down to 32, so that a probe on them stays affordable.
    """
    size = min(images.shape[-1], LARGEST_RAW_SIZE)
    return adaptive_avg_pool2d(images, size).flatten(1)


def extract_features(
    encoder: Encoder, data: ImageData, part: Part, positions: Tensor, batch_size: int, device: torch.device, name: str
) -> np.ndarray:
    """Features float32 [N, D] of the images of a part at ``positions`` (int64 [N]).

    Raises:
        DataError: features that are not finite.
    """
    features = []
    with torch.no_grad():
        # disable=None: no bar where standard error is not a terminal
        for some in tqdm(positions.split(batch_size), desc=f"encoding, {name}", leave=False, disable=None):
            features.append(encoder(data.normalize(part.pixels(some).to(device))).float().cpu())
    joined = torch.cat(features)
    if not joined.isfinite().all():
        raise DataError(f"the features of the {name} are not finite: its training has diverged")
    return joined.numpy()


def stratified_positions(labels: Tensor, limit: int | None, seed: int) -> Tensor:
    """At most ``limit`` positions (int64, sorted), every class in proportion.

    Args:
        labels: int64 [N].
        limit: None takes all.
        seed: of the drawing.
    """
    rows = np.arange(len(labels))
    return torch.from_numpy(limit_rows(labels.numpy(), rows, limit, random_for(seed, "evaluation")))
