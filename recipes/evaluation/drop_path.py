"""Drop path: leaves out residual branches at random during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multilevel.levels import MaskedAutoencoder


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): zeroes a share of the images and scales the others to keep the expectation.

    Args:
        rate: the share, 0 to 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Apply to a residual branch's output [B, ...]; returns the same shape."""
        if not self.training or self.rate == 0:
            return branch
        shape = (len(branch), *[1] * (branch.ndim - 1))
        mask = torch.rand(shape, device=branch.device) >= self.rate
        return branch * mask / (1 - self.rate)


def add_drop_path(encoder: MaskedAutoencoder, rate: float) -> None:
    """Make every block drop its two branches with a probability that rises linearly from 0 at the first block to
    ``rate``."""
    layers = encoder.mae.vit.layers
    for index, layer in enumerate(layers):
        # a block's dropout is the last thing on both of its branches
        layer.dropout = nn.Sequential(layer.dropout, DropPath(rate * index / max(1, len(layers) - 1)))
