"""Hides the patches that the encoder attends to most."""

from typing import Annotated

import torch
from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy, MaskView
from multilevel.solvers.ranges import AtLeast, Below, check_value


class Attention(MaskPolicy):
    """AttMask (Kakogeorgiou et al. 2022), with the current encoder's own attention instead of a teacher's.

    Args:
        hint: share of the patches to hide that are drawn at random and shown instead (AttMask-Hint); the patches next
            in attention are hidden in their place. 0 hides the most attended patches (AttMask-High).

    Raises:
        SettingError: a hint outside 0 to 1.

    Examples:
        The view of ``MaskView``'s example, whose encoder attends to patches 3 and 2 most:

        >>> Attention().scores(view).topk(view.hidden).indices
        tensor([[3, 2]])
    """

    learns_from = None

    def __init__(self, hint: float = 0.0) -> None:
        check_value("mask.options.hint", hint, Annotated[float, AtLeast(0), Below(1)])
        self.hint = hint

    def scores(self, view: MaskView) -> Tensor:
        attention = view.attention
        shown = min(round(self.hint * view.patches), view.patches - view.hidden, view.hidden)
        if shown == 0:
            return attention
        most = attention.topk(view.hidden, dim=1).indices
        chosen = torch.rand_like(most, dtype=attention.dtype).argsort(1)[:, :shown]
        return attention.scatter(1, most.gather(1, chosen), -1.0)
