"""Hides every patch with the same probability, as in the plain masked autoencoder."""

from typing import ClassVar

import torch
from torch import Tensor

from multilevel.levels.masks.base import LearnsFrom, MaskPolicy, MaskView


class Random(MaskPolicy):
    """Uniformly random patches (He et al. 2022).

    Examples:
        >>> Random().scores(view).shape, Random.learns_from
        (torch.Size([1, 4]), None)
    """

    learns_from: ClassVar[LearnsFrom] = None

    def scores(self, view: MaskView) -> Tensor:
        return torch.rand(len(view.images), view.patches, device=view.images.device)
