"""Hides patches sampled with the masking network's probabilities."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from multilevel.levels.masks.base import MaskPolicy, MaskView
from multilevel.levels.masks.gumbel import gumbel_scores, order_log_probability


class Sampled(MaskPolicy):
    """Patches drawn without replacement, in proportion to their probability.

    Examples:
        The view of ``MaskView``'s example, whose masking network prefers patches 0 and 2:

        >>> Sampled().scores(view).topk(view.hidden).indices.sort().values
        tensor([[0, 2]])
    """

    def scores(self, view: MaskView) -> Tensor:
        return gumbel_scores(logsigmoid(view.logits))

    def log_probability(self, view: MaskView, scores: Tensor, hidden: Tensor) -> Tensor:
        return order_log_probability(logsigmoid(view.logits), scores, hidden, view.maskable)
