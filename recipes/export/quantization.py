"""Measures what a classifier loses by its quantization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from multilevel.recipes.data import ImageData, Split
from multilevel.recipes.data.strata import random_for
from multilevel.recipes.export.onnx_model import OnnxModel
from multilevel.recipes.export.trained import TrainedModel
from multilevel.recipes.export.weights import FeaturesAndLogits

LARGEST = 1000
BATCH_SIZE = 64
SEED = 0


@dataclass(frozen=True)
class QuantizationLoss:
    """A quantized classifier compared with its original on labelled images.

    Attributes:
        part: which images, in words.
        images: their number.
        accuracy, balanced_accuracy: of the original, from 0 to 1.
        quantized_accuracy, quantized_balanced_accuracy: of the quantized classifier.
        changed: number of images with another predicted class.
        largest_change: of a probability.
    """

    part: str
    images: int
    accuracy: float
    balanced_accuracy: float
    quantized_accuracy: float
    quantized_balanced_accuracy: float
    changed: int
    largest_change: float

    def __str__(self) -> str:
        return (
            f"int8: accuracy {self.quantized_accuracy:.1%} instead of {self.accuracy:.1%}, balanced accuracy "
            f"{self.quantized_balanced_accuracy:.1%} instead of {self.balanced_accuracy:.1%}, another class for "
            f"{self.changed} of {self.images} images, probabilities changed by at most {self.largest_change:.3f} "
            f"(measured on {self.part})"
        )


def quantization_loss(trained: TrainedModel, original: FeaturesAndLogits, quantized: OnnxModel) -> QuantizationLoss:
    """Compare a quantized classifier with its original on at most 1,000 labelled images, never of the test part.

    Args:
        trained: its data has the images.
        original: on the CPU.
        quantized: the written file.
    """
    part, name = scored_part(trained.data)
    drawn = np.sort(random_for(SEED, "quantization").permutation(len(part))[:LARGEST])
    before, after = [], []
    for positions in torch.from_numpy(drawn).split(BATCH_SIZE):
        pixels = part.pixels(positions)
        with torch.no_grad():
            before.append(original(trained.data.normalize(pixels))[0].double().softmax(1).numpy())
        after.append(quantized.run(["probabilities"], pixels.permute(0, 2, 3, 1).numpy())[0])
    expected, found = np.concatenate(before), np.concatenate(after)
    labels = part.labels[torch.from_numpy(drawn)].numpy()
    classes, quantized_classes = expected.argmax(1), found.argmax(1)
    return QuantizationLoss(
        name,
        len(drawn),
        accuracy_score(labels, classes),
        balanced_accuracy_score(labels, classes),
        accuracy_score(labels, quantized_classes),
        balanced_accuracy_score(labels, quantized_classes),
        int((classes != quantized_classes).sum()),
        float(np.abs(found - expected).max()),
    )


def scored_part(data: ImageData) -> tuple[Split, str]:
    """The validation part, else the part held out for mask learning, else the training images; and its name."""
    if len(data.validation):
        return data.validation, "validation images"
    if len(data.mask):
        return data.mask, "labelled images held out for mask learning"
    return data.train, "labelled training images, since none are held out: the loss on new images may be larger"
