"""A trained model, for export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from multilevel.levels import MaskedAutoencoder, MaskingNetwork
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
        masking: the trained masking network; None if the run trained none.
        mask_settings: the run's settings ``mask.*``.
    """

    autoencoder: MaskedAutoencoder
    classifier: nn.Linear | None
    data: ImageData
    device: torch.device
    masking: MaskingNetwork | None = None
    mask_settings: Mapping[str, Any] = field(default_factory=dict)
