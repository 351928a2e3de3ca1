"""Random masks: the masking network only weighs the losses of what they hide."""

from multilevel.levels.masks.random import Random


class Weighted(Random):
    """Uniformly random patches; what is learned from the downstream task is how much the loss of each counts.

    Beside the other guided policies it says which part of a difference is due to the weights, and which to the masks.

    Examples:
        >>> Weighted().scores(view).shape, Weighted.learns_from
        (torch.Size([1, 4]), 'downstream')
    """

    learns_from = "downstream"
