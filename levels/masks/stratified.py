"""Hides patches from every rank of the masking network's probabilities, so that no kind of patch is hidden entirely."""

import torch
from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy, MaskView


class Stratified(MaskPolicy):
    """Cuts the patches, ordered by probability, into one run per visible patch, and shows one patch of each run.

    Every patch is hidden as often as with random masks; the masking network chooses which patches are hidden together.
    Patches with similar ranks are never all hidden and never all visible.

    Examples:
        One of patches 0 and 2, which the network of ``MaskView``'s example prefers, and one of 1 and 3:

        >>> hidden = Stratified().scores(view).topk(view.hidden).indices
        >>> (hidden % 2).sort().values
        tensor([[0, 1]])
    """

    def scores(self, view: MaskView) -> Tensor:
        visible = view.patches - view.hidden
        ranks = view.logits.argsort(1, descending=True).argsort(1)
        runs = ranks * visible // view.patches
        scores = torch.rand_like(view.logits)
        least = torch.ones_like(scores[:, :visible]).scatter_reduce(1, runs, scores, "amin")
        return torch.where(scores == least.gather(1, runs), -1.0, scores)
