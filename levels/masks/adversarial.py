"""Hides patches that a masking network has learned are hard to reconstruct."""

from multilevel.levels.masks.sampled import Sampled


class Adversarial(Sampled):
    """Samples patches with the probabilities of a masking network that maximizes the reconstruction loss.

    After ADIOS (Shi et al. 2022), with hard masks of a fixed ratio instead of soft masks.

    Examples:
        The view of ``MaskView``'s example, whose masking network prefers patches 0 and 2:

        >>> Adversarial().scores(view).topk(view.hidden).indices.sort().values
        tensor([[0, 2]])
        >>> Adversarial.learns_from
        'reconstruction'
    """

    learns_from = "reconstruction"
