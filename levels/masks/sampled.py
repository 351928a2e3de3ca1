"""Patches sampled with the masking network's probabilities."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multilevel.levels.masks.base import MaskPolicy


class Sampled(MaskPolicy):
    """Gumbel top-k: patches drawn without replacement, in proportion to their probability (Kool et al. 2019)."""

    def scores(self, logits: Tensor) -> Tensor:
        gumbel = -torch.empty_like(logits).exponential_().log()
        return logsigmoid(logits) + gumbel
