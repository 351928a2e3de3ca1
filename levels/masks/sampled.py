"""Patches sampled with the masking network's probabilities."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from multilevel.levels.masks.base import MaskPolicy, MaskView
from multilevel.levels.masks.gumbel import gumbel_scores


class Sampled(MaskPolicy):
    """Patches drawn without replacement, in proportion to their probability."""

    def scores(self, view: MaskView) -> Tensor:
        return gumbel_scores(logsigmoid(view.logits))
