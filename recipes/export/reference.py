"""The reference for monitoring: features, logits and optics of a sample of the training images."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from multilevel.recipes.data import ImageData, Split
from multilevel.recipes.data.images import worker_count
from multilevel.recipes.data.raster import bounded
from multilevel.recipes.data.strata import random_for
from multilevel.recipes.evaluation.evaluate import extract_features
from multilevel.recipes.export.drift import Sample
from multilevel.recipes.export.optics import Optics, near_copies
from multilevel.recipes.export.trained import TrainedModel
from multilevel.recipes.export.weights import first_not_finite
from multilevel.solvers import DataError

REFERENCE = "reference.safetensors"
LARGEST = 1000
LARGEST_GROUP = 0.2  # share of the images
ENOUGH = 100  # if at least this many images were held out, they are preferred
BATCH_SIZE = 256
SEED = 0


@dataclass(frozen=True)
class DriftReference:
    """Training images to compare new images with.

    Attributes:
        sample: features, and in exports of this version optics and groups.
        logits: float32 [N, classes]; None without a classifier.
        labels: int64 [N]; None without labels, and in exports of earlier versions.
    """

    sample: Sample
    logits: np.ndarray | None
    labels: np.ndarray | None = None

    @classmethod
    def load(cls, folder: Path) -> DriftReference:
        """Load the reference of an exported folder.

        Raises:
            DataError: the reference is missing or broken, or has values that are not finite.
        """
        path = folder / REFERENCE
        try:
            tensors = load_file(path)
            if broken := first_not_finite(tensors):
                raise ValueError(f"{broken} has values that are not finite")
            if tensors["features"].dim() != 2 or len({tensor.shape[:1] for tensor in tensors.values()}) > 1:
                raise ValueError("its arrays are not of the same images")
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            sample = Sample(arrays["features"], arrays.get("optics"), arrays.get("groups"))
            return cls(sample, arrays.get("logits"), arrays.get("labels"))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): export the run again") from error

    def features_of(self, label: int | None) -> np.ndarray:
        """Features float32 [M, D] of the images of one class; of all images without labels, or for None."""
        if label is None or self.labels is None:
            return self.sample.features
        return self.sample.features[self.labels == label]


def reference_tensors(trained: TrainedModel) -> Mapping[str, Tensor]:
    """Features [N, width], optics [N, 7], groups [N] and, if there are any, labels [N] and logits [N, classes] of at
    most 1,000 training pictures, drawn at random."""
    part = reference_part(trained.data)
    drawn = np.sort(random_for(SEED, "reference").permutation(len(part.pictures))[:LARGEST])
    positions = torch.from_numpy(part.pictures.positions(drawn))
    part = replace(part, indices=part.indices[positions])
    encoder, every = trained.autoencoder.features, torch.arange(len(part))
    features = extract_features(encoder, trained.data, part, every, BATCH_SIZE, trained.device, "reference")
    logits = None
    if trained.classifier is not None:
        with torch.no_grad():
            logits = trained.classifier(torch.from_numpy(features).to(trained.device)).float().cpu().numpy()
    features, logits = part.pictures.join(features, logits)
    optics = source_optics(part)
    groups = part.groups.numpy()[part.pictures.firsts]
    tensors = {
        "features": torch.from_numpy(features),
        "optics": torch.from_numpy(optics.measures),
        "groups": torch.from_numpy(reference_groups(groups, optics.thumbnails)),
    }
    if trained.data.labelled:
        tensors["labels"] = torch.from_numpy(part.pictures.labels)
    return tensors if logits is None else {**tensors, "logits": torch.from_numpy(logits)}


def source_optics(part: Split) -> Optics:
    """The optics of a part's pictures, as they are read from their files."""

    def measure(row: int) -> Optics:
        source = part.images.source.whole
        with bounded(source.open(row)) as picture:
            return Optics.of(picture, source.pixel_range)

    Image.init()  # Pillow looks for its formats on first use, which is not safe in threads
    with ThreadPoolExecutor(worker_count(), "optics") as pool:
        return Optics.joined(list(pool.map(measure, part.pictures.rows.tolist())))


def reference_groups(groups: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The groups of the data, int64 [N]; if it has none, connected near copies.

    If more than a fifth of the images are connected, they are alike by nature (a fixed camera and parts in a fixed
    place), and near copies do not show the same part: then every image is a group.
    """
    if len(np.unique(groups)) < len(groups):
        return groups
    copies = near_copies(thumbnails)
    return groups if np.bincount(copies).max() > LARGEST_GROUP * len(copies) else copies


def reference_part(data: ImageData) -> Split:
    """Training images that neither encoder nor classifier was fitted to, if there are enough; on fitted images,
    features and confidence differ slightly from those on new images."""
    held_out = replace(data.mask, indices=torch.cat([data.mask.indices, data.validation.indices]))
    if len(held_out.pictures) >= ENOUGH:
        return held_out
    return data.train if data.labelled else data.pretrain
