"""Hides contiguous blocks of patches."""

import math

import torch
from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy, MaskView

BLOCKS = 64  # drawn for each image; the first few suffice
SMALLEST, LARGEST = 0.08, 0.4  # share of the patches in a block; BEiT: at least 16 of 196, at most all that are due
LONGEST = 1 / 0.3  # largest ratio of a block's sides


class Block(MaskPolicy):
    """Hides rectangles one by one until the mask ratio is reached (BEiT, Bao et al. 2022, algorithm 1).

    Exactly the mask ratio is hidden: the last rectangle is cut to the rows still needed and part of a row.

    Examples:
        Half of four patches: two that share an edge, never a diagonal.

        >>> hidden = Block().scores(view).topk(view.hidden).indices
        >>> hidden.sum().item() != 3
        True
    """

    learns_from = None

    def scores(self, view: MaskView) -> Tensor:
        count, side, device = len(view.images), view.side, view.images.device
        draws = torch.rand(4, count, BLOCKS, device=device)
        area = (SMALLEST + (LARGEST - SMALLEST) * draws[0]) * view.patches
        shape = torch.exp((2 * draws[1] - 1) * math.log(LONGEST))
        height = (area * shape).sqrt().round().clamp(1, side)
        width = (area / shape).sqrt().round().clamp(1, side)
        rows = _covered(((side - height + 1) * draws[2]).floor(), height, side)
        columns = _covered(((side - width + 1) * draws[3]).floor(), width, side)
        inside = (rows[..., :, None] & columns[..., None, :]).flatten(2)  # [B, BLOCKS, L]
        # The earlier its first block, the higher a patch scores; a patch in no block scores below all others.
        first = torch.where(inside.any(1), BLOCKS - inside.int().argmax(1), 0)
        within = torch.arange(view.patches, device=device) / view.patches
        downwards = torch.rand(count, 1, device=device) < 0.5
        return first + torch.where(downwards, within, within.flip(0))


def _covered(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Marks the ``side`` positions that lie in a range: start and length [...] to bool [..., side]."""
    position = torch.arange(side, device=start.device)
    return (position >= start[..., None]) & (position < (start + length)[..., None])
