"""Hides random patches; the masking network only weights their losses."""

from multilevel.levels.masks.random import Random


class Weighted(Random):
    """Uniformly random patches; the downstream task teaches only the weight of each patch's loss.

    A comparison with the other guided policies separates the effect of the weights from that of the masks.

    Examples:
        >>> Weighted().scores(view).shape, Weighted.learns_from
        (torch.Size([1, 4]), 'downstream')
    """

    learns_from = "downstream"
