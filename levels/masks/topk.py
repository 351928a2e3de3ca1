"""Hides the patches with the highest probabilities of the masking network."""

from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy, MaskView


class TopK(MaskPolicy):
    """The most probable patches, without randomness; the published policy of MLO-MAE.

    Examples:
        The view of ``MaskView``'s example, whose masking network prefers patches 0 and 2:

        >>> TopK().scores(view).topk(view.hidden).indices
        tensor([[0, 2]])
    """

    def scores(self, view: MaskView) -> Tensor:
        return view.logits
