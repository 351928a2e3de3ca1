"""Measures how similar a masking network's probabilities and masks are, to detect a collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
