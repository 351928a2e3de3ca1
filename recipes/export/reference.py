"""The reference for monitoring: features and logits of a sample of the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from multilevel.recipes.data import ImageData, Split
from multilevel.recipes.data.strata import random_for
from multilevel.recipes.evaluation.evaluate import extract_features
from multilevel.recipes.export.trained import TrainedModel
from multilevel.solvers import DataError

REFERENCE = "reference.safetensors"
LARGEST = 1000
ENOUGH = 100  # if at least this many images were held out, they are preferred
BATCH_SIZE = 256
SEED = 0


@dataclass(frozen=True)
class DriftReference:
    """Features float32 [N, width] and logits float32 [N, classes]; None without a classifier."""

    features: np.ndarray
    logits: np.ndarray | None

    @classmethod
    def load(cls, folder: Path) -> DriftReference:
        """Load the reference of an exported folder.

        Raises:
            DataError: the reference is missing or broken.
        """
        path = folder / REFERENCE
        try:
            tensors = load_file(path)
            logits = tensors.get("logits")
            return cls(tensors["features"].numpy(), None if logits is None else logits.numpy())
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{path} cannot be read ({error}): export the run again") from error


def reference_tensors(trained: TrainedModel) -> Mapping[str, Tensor]:
    """Features [N, width] and logits [N, classes] of at most 1,000 training images, drawn at random."""
    part = reference_part(trained.data)
    drawn = random_for(SEED, "reference").permutation(len(part))[:LARGEST]
    positions = torch.from_numpy(np.sort(drawn))
    encoder = trained.autoencoder.features
    extracted = extract_features(encoder, trained.data, part, positions, BATCH_SIZE, trained.device, "reference")
    features = torch.from_numpy(extracted)
    if trained.classifier is None:
        return {"features": features}
    with torch.no_grad():
        return {"features": features, "logits": trained.classifier(features.to(trained.device)).float().cpu()}


def reference_part(data: ImageData) -> Split:
    """Training images that neither encoder nor classifier was fitted to, if there are enough; on fitted images,
    features and confidence differ slightly from those on new images."""
    if len(data.mask) >= ENOUGH:
        return data.mask
    return data.train if data.labelled else data.pretrain
