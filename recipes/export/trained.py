"""A trained model, for export."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from multilevel.levels import MaskedAutoencoder
from multilevel.recipes.data import ImageData


@dataclass(frozen=True)
class TrainedModel:
    """An autoencoder, a classifier on its encoder, and the data that both learned from.

    Attributes:
        autoencoder: encoder and decoder.
        classifier: from the mean of the encoder's patch tokens [B, width] to logits [B, classes]; None if the task is
            not classification or the images have no labels.
        data: its statistics and class names describe the model's inputs and outputs.
        device: device of the modules.
    """

    autoencoder: MaskedAutoencoder
    classifier: nn.Linear | None
    data: ImageData
    device: torch.device
