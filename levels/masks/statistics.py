"""Measures how similar masks and their probabilities are, to detect a collapse, and how far masks are from random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multilevel.levels.masks.base import MaskPolicy, MaskView

#: What ``mask_statistics`` returns.
STATISTICS = ("entropy_over_patches", "entropy_over_images", "never_hidden", "overlap", "excess_overlap")
DRAWS = 1000  # standard error of a probability p: sqrt(p (1 - p) / 1000), at most 0.016, and 0.014 at p = 0.75


def mask_statistics(probabilities: Tensor, hidden: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """Statistics of one batch, each a scalar.

    Args:
        probabilities: [B, L] of hiding each patch, above 0.
        hidden: bool [B, L], the masks, each with the same number of patches.
        counted: bool [B], the images to count.

    Returns:
        - ``entropy_over_patches``: entropy of each image's probabilities, normalized to sum to 1, as a share of log L;
        mean over images. 1 means that every patch is equally likely to be hidden.
        - ``entropy_over_images``: entropy of each patch's probabilities over images, also normalized, as a share of the
        logarithm of the number of images; mean over patches. 1 means the same probabilities for every image.
        - ``never_hidden``: share of patches that are hidden in no image.
        - ``overlap``: share of the hidden patches that two images have in common, mean over pairs: the mask ratio for
        random masks, 1 for identical masks.
        - ``excess_overlap``: (overlap - ratio) / (1 - ratio), 0 for random masks.

        With fewer than two counted images, ``entropy_over_images`` and the overlaps are 0.

    Examples:
        Two images with the same probabilities and the same mask, of half of two patches:

        >>> hidden = torch.tensor([[True, False], [True, False]])
        >>> statistics = mask_statistics(torch.full((2, 2), 0.5), hidden, torch.ones(2, dtype=torch.bool))
        >>> statistics["overlap"].item(), statistics["never_hidden"].item()
        (1.0, 0.5)
    """
    images = counted.sum()
    patches, hidden_count = hidden.shape[1], int(hidden[0].sum())
    weights = probabilities.double() * counted[:, None]
    by_image = weights / weights.sum(1, keepdim=True).clamp(min=1e-300)
    by_patch = weights / weights.sum(0, keepdim=True).clamp(min=1e-300)
    counts = (hidden & counted[:, None]).sum(0).double()
    pairs = (images * (images - 1)).clamp(min=1)
    overlap = (counts * (counts - 1)).sum() / (pairs * hidden_count)
    ratio = hidden_count / patches
    comparable = images > 1
    return {
        "entropy_over_patches": torch.special.entr(by_image).sum() / images.clamp(min=1) / math.log(patches),
        "entropy_over_images": torch.special.entr(by_patch).sum() / patches / images.clamp(min=2).log(),
        "never_hidden": (counts == 0).double().mean(),
        "overlap": overlap * comparable,
        "excess_overlap": (overlap - ratio) / (1 - ratio) * comparable,
    }


def normalized_entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy of the images' probabilities [B, L], normalized to sum to 1, as a share of log L: 0 to 1.

    Examples:
        >>> normalized_entropy(torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
        tensor(1.)
    """
    shares = probabilities / probabilities.sum(1, keepdim=True)
    return torch.special.entr(shares).sum(1).mean() / math.log(probabilities.shape[1])


@torch.no_grad()
def hiding_probabilities(policy: MaskPolicy, view: MaskView, draws: int = DRAWS) -> Tensor:
    """The probability that a policy hides each patch, float32 [B, L], estimated as the share of independent draws.

    Drawing is right for every policy: without replacement, no closed form is feasible. Each image's probabilities sum
    to its number of hidden patches. Random numbers come from torch's generators.

    Args:
        policy: chooses the hidden patches.
        view: the images.
        draws: number of masks; the standard error of a probability p is sqrt(p (1 - p) / draws).

    Examples:
        Of the four patches of ``MaskView``'s example, two are hidden, and the masking network prefers patches 0 and 2:

        >>> from multilevel.levels.masks.topk import TopK
        >>> hiding_probabilities(TopK(), view, draws=2)
        tensor([[1., 0., 1., 0.]])
    """
    count = torch.zeros(len(view.images), view.patches, device=view.images.device)
    ones = torch.ones_like(count)
    for _ in range(draws):
        count.scatter_add_(1, policy.scores(view).topk(view.hidden).indices, ones)
    return count / draws


def mask_predictability(probabilities: Tensor, draws: int = DRAWS) -> float:
    """How well the patches' probabilities predict the masks: 0 if every patch is hidden equally often, as by random
    masks, 1 if each image always has the same mask.

    It is the coefficient of determination: the share that differences between an image's patches, (p - r)^2, have in
    the variance of a patch's being hidden, r (1 - r), where r is the mask ratio; mean over images and patches. The
    variance of the estimated probabilities is subtracted, so that the expected value does not depend on the number of
    draws; the value for random masks is therefore a little above or below 0.

    Args:
        probabilities: [B, L], from ``hiding_probabilities``.
        draws: number of masks they are estimated from, at least 2.

    Examples:
        >>> mask_predictability(torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
        1.0
    """
    shares = probabilities.double()
    ratio = shares.mean(1, keepdim=True)
    sampling = shares * (1 - shares) / (draws - 1)  # unbiased for the variance p (1 - p) / draws
    return float((((shares - ratio).square() - sampling) / (ratio * (1 - ratio))).mean())
