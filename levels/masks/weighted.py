"""Random masks: the masking network only weights the losses of the hidden patches."""

from multilevel.levels.masks.random import Random


class Weighted(Random):
    """Uniformly random patches; the downstream task only teaches how much the loss of each counts.

    Compared with the other guided policies it separates the effect of the weights from that of the masks.

    Examples:
        >>> Weighted().scores(view).shape, Weighted.learns_from
        (torch.Size([1, 4]), 'downstream')
    """

    learns_from = "downstream"
