"""The patches that the masking network would hide first."""

from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy, MaskView


class TopK(MaskPolicy):
    """The most probable patches, without chance: the policy published with MLO-MAE."""

    def scores(self, view: MaskView) -> Tensor:
        return view.logits
