"""Every patch with the same probability: the plain masked autoencoder."""

import torch
from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy


class Random(MaskPolicy):
    """Uniformly random patches (He et al. 2022)."""

    guided = False

    def scores(self, logits: Tensor) -> Tensor:
        return torch.rand_like(logits)
