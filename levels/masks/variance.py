"""Hides patches with contrast, which tend to be informative, without a network."""

from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy, MaskView
from multilevel.levels.masks.gumbel import gumbel_scores

SMALLEST = 1e-6  # of normalized pixels: a flat patch can be hidden too


class Variance(MaskPolicy):
    """Patches drawn without replacement, in proportion to the variance of their pixels (including channels).

    Examples:
        The last of four patches has contrast, the others are flat:

        >>> images = torch.zeros(1, 1, 4, 4)
        >>> images[..., 3, 3] = 100.0
        >>> Variance().scores(MaskView(images, 4, 1, lambda: None, lambda: None)).argmax(1)
        tensor([3])
    """

    learns_from = None

    def scores(self, view: MaskView) -> Tensor:
        images, side = view.images.float(), view.side
        count, channels, height, width = images.shape
        patches = images.view(count, channels, side, height // side, side, width // side).transpose(3, 4)
        variance = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).var(-1).flatten(1)
        return gumbel_scores((variance + SMALLEST).log())
