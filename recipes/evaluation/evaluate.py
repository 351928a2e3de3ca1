"""Scores encoders on the test or validation split; nothing else reads the test split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from multilevel.levels.tasks.classification import majority_metrics
from multilevel.problems import replicas
from multilevel.recipes.data import ImageData, Split
from multilevel.recipes.data.strata import limit_rows, random_for
from multilevel.recipes.evaluation.labels import Amount, draw_labels
from multilevel.recipes.evaluation.protocols import Candidate, Encoder, EvaluationProtocol, Setup, Trial
from multilevel.recipes.evaluation.scores import Score, shown_first
from multilevel.recipes.evaluation.settings import EvaluationSettings
from multilevel.solvers import DataError, SettingError

LARGEST_RAW_SIZE = 32


def evaluate_features(candidates: Sequence[Candidate], setup: Setup, settings: EvaluationSettings) -> list[Score]:
    """Score every candidate with every protocol, fitted to every amount of labelled training images.

    Args:
        candidates: they get normalized images on ``setup.device``; their modules do not change.
        setup: data, task and device.
        settings: the protocols, their options, the amounts of labels, and the split to score on; the other split is not
            read.

    Returns:
        Scores by candidate. The last candidate is ``"majority class"``, which always predicts the most frequent
        training class.

    Raises:
        DataError: no labels, no images to score, an encoder whose features are not finite, or images of a single class
            where the metric is the area under the ROC curve.
        SettingError: too few images for two classes, or a protocol that the labels do not suit.
    """
    scored, drawn = scored_part(setup.data, settings), label_pool(setup.data, settings)
    pool, every = of_pictures(setup.data.train, drawn), picture_labels(setup.data)
    names = settings.protocols_of(setup.task)
    protocols = {name: settings.protocol(name) for name in names}
    metric = settings.metric or setup.task.headline
    amounts = {amount: draw_labels(every, drawn, amount, settings.seed) for amount in settings.amounts}
    fitted = {amount: of_pictures(pool, chosen) for amount, chosen in amounts.items()}
    for part in fitted.values():
        _check_labels(part, scored, protocols, settings)
    if metric == "macro_roc_auc" and len(np.unique(scored.pictures.labels)) < 2:
        raise DataError(
            f"all {settings.split} images are of one class, so the area under the ROC curve is not defined: give the "
            f"set images of another class, raise data.{settings.split}_share, or set evaluation.metric=accuracy"
        )
    common = (metric, settings.neighbours, settings.batch_size, settings.seed)
    scores = []
    for candidate in candidates:
        frozen = _frozen_features(candidate, setup, settings, pool, scored)
        tasks = [
            partial(_score, name, amount, protocol, trial)
            for amount, part in fitted.items()
            for trial in [Trial(candidate, setup, part, scored, _chosen(frozen, pool, amounts[amount]), *common)]
            for name, protocol in candidate.protocols(protocols).items()
        ]
        scores += replicas.spread(tasks)
    for amount, part in fitted.items():
        for name, protocol in protocols.items():
            if protocol.needs_classes or setup.task.soft_targets:
                metrics = shown_first(
                    majority_metrics(part.pictures.labels, scored.pictures.labels, len(setup.data.class_names)), metric
                )
                scores.append(Score("majority class", name, amount, metrics, len(part)))
    return scores


def _score(name: str, amount: Amount, protocol: EvaluationProtocol, trial: Trial) -> Score:
    metrics = shown_first(protocol.metrics(trial), trial.metric)
    return Score(trial.candidate.name, name, amount, metrics, len(trial.fitted))


def raw_pixels(images: Tensor) -> Tensor:
    """The pixels themselves as features: [B, C, H, W] to [B, C * H * W].

    Images larger than 32 pixels per side are averaged down to 32, which keeps probes affordable.
    """
    size = min(images.shape[-1], LARGEST_RAW_SIZE)
    return adaptive_avg_pool2d(images, size).flatten(1)


def extract_features(
    encoder: Encoder, data: ImageData, part: Split, positions: Tensor, batch_size: int, device: torch.device, name: str
) -> np.ndarray:
    """Compute features float32 [N, D] of a part's images at ``positions`` (int64 [N]).

    Raises:
        DataError: features that are not finite.
    """
    features = []
    with torch.no_grad():
        # disable=None: no bar unless standard error is a terminal
        for batch in tqdm(positions.split(batch_size), desc=f"encoding, {name}", leave=False, disable=None):
            features.append(encoder(data.normalize(part.pixels(batch).to(device))).float().cpu())
    joined = torch.cat(features)
    if not joined.isfinite().all():
        raise DataError(f"the features of the {name} are not finite: its training has diverged")
    return joined.numpy()


def stratified_positions(labels: Tensor, limit: int | None, seed: int) -> Tensor:
    """Draw at most ``limit`` sorted positions (int64), with every class in proportion.

    Args:
        labels: int64 [N].
        limit: None takes all.
        seed: seed of the draw.
    """
    rows = np.arange(len(labels))
    return torch.from_numpy(limit_rows(labels.numpy(), rows, limit, random_for(seed, "evaluation")))


def amount_images(data: ImageData, settings: EvaluationSettings) -> dict[Amount, int]:
    """The number of labelled training images that each amount comes to."""
    labels, pool = picture_labels(data), label_pool(data, settings)
    return {amount: len(draw_labels(labels, pool, amount, settings.seed)) for amount in settings.amounts}


def picture_labels(data: ImageData) -> Tensor:
    """The labels, int64, of the labelled training pictures."""
    return torch.from_numpy(data.train.pictures.labels)


def label_pool(data: ImageData, settings: EvaluationSettings) -> Tensor:
    """Positions, int64, of the labelled training pictures that protocols can be fitted to."""
    return stratified_positions(picture_labels(data), settings.max_images, settings.seed)


def scored_part(data: ImageData, settings: EvaluationSettings) -> Split:
    """The part to score.

    Raises:
        DataError: no labels, or no images to score.
    """
    if not data.labelled:
        raise DataError("the images have no labels, so features cannot be evaluated")
    scored = data.validation if settings.split == "validation" else data.test
    if not len(scored):
        remedy = "" if settings.split == "validation" else ", or give the set a test split"
        raise DataError(f"there are no {settings.split} images: raise data.{settings.split}_share{remedy}")
    return scored


def _check_labels(
    fitted: Split, scored: Split, protocols: dict[str, EvaluationProtocol], settings: EvaluationSettings
) -> None:
    for name, protocol in protocols.items():
        if not protocol.needs_classes:
            continue
        if min(int(fitted.labels.min()), int(scored.labels.min())) < 0:
            raise SettingError("evaluation.protocols", name, "head or finetune: some images have no single class")
        if len(fitted.labels.unique()) < 2:
            raise SettingError("evaluation.max_images", settings.max_images, "enough images for two classes")


def of_pictures(part: Split, chosen: Tensor) -> Split:
    """The images of some pictures (int64) of a part: of each all tiles, with ``data.tiles``."""
    return replace(part, indices=part.indices[torch.from_numpy(part.pictures.positions(chosen.numpy()))])


def _frozen_features(
    candidate: Candidate, setup: Setup, settings: EvaluationSettings, *parts: Split
) -> Callable[[], list[np.ndarray]]:
    """The candidate's features of each part, computed on first use."""

    def extract(part: Split) -> np.ndarray:
        every = torch.arange(len(part))
        batch_size, device = settings.batch_size, setup.device
        return extract_features(candidate.features, setup.data, part, every, batch_size, device, candidate.name)

    return cache(lambda: [extract(part) for part in parts])


def _chosen(
    frozen: Callable[[], list[np.ndarray]], pool: Split, chosen: Tensor
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """The features of the images of some pictures of the pool, and of the scored images."""
    positions = pool.pictures.positions(chosen.numpy())
    return lambda: (frozen()[0][positions], frozen()[1])
