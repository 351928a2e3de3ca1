"""Random masks: the masking network only weighs the losses of what they hide."""

import torch
from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy, MaskView


class Weighted(MaskPolicy):
    """Uniformly random patches; what is learned from the downstream task is how much the loss of each counts.

    Beside the other guided policies it says which part of a difference is due to the weights, and which to the masks.
    """

    def scores(self, view: MaskView) -> Tensor:
        return torch.rand(len(view.images), view.patches, device=view.images.device)
