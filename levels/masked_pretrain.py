"""Level: pretrain an encoder by reconstructing hidden patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multilevel.levels.masked_autoencoder import MaskedAutoencoder
from multilevel.levels.masks import MaskPolicy
from multilevel.problems import Problem
from multilevel.problems.levels import Levels
from multilevel.solvers import SettingError

WEIGHTS = ("normalized", "raw")


class MaskedPretrain(Problem):
    """Reconstruction loss of hidden patches, each weighted by the masking network's probability of hiding it.

    Batches are (images [B, C, H, W], labels, which are not used).

    Args:
        module: the autoencoder.
        policy: chooses the hidden patches.
        weights: raw (the probabilities, as published; the loss can then be lowered by the probabilities alone)
            or normalized (they sum to 1 in each image).
        mask: name of the level that holds the masking network; used by guided policies.

    Raises:
        SettingError: unknown weights.
    """

    def __init__(
        self,
        name: str,
        module: MaskedAutoencoder,
        *,
        policy: MaskPolicy,
        weights: str = "normalized",
        mask: str = "mask",
        **keywords: Any,
    ) -> None:
        super().__init__(name, module, **keywords)
        if weights not in WEIGHTS:
            raise SettingError("mask.weights", weights, f"one of {', '.join(WEIGHTS)}")
        self.patches = module.patches
        self.policy = policy
        self.weights = weights
        self.mask = mask

    def draw(self, levels: Levels, batch: Any) -> Tensor:
        """Scores [B, L]: the patches with the largest are hidden."""
        images = batch[0]
        if self.policy.guided:
            return self.policy.scores(getattr(levels, self.mask)(images))
        return self.policy.scores(torch.zeros(len(images), self.patches, device=images.device))

    def outputs(self, levels: Levels, batch: Any, draws: Tensor) -> list[Tensor]:
        """Predicted pixels [B, L, patch * patch * C] and the mask [B, L], 1 where hidden."""
        return list(getattr(levels, self.name).reconstruct(batch[0], draws))

    def criterion(
        self, outputs: list[Tensor], levels: Levels, batch: Any, draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch[0]
        prediction, hidden = outputs
        losses = getattr(levels, self.name).patch_losses(images, prediction)
        plain = (losses * hidden).sum() / hidden.sum()
        if not self.policy.guided:
            return plain, {}
        weights = getattr(levels, self.mask)(images).sigmoid() * hidden
        scale = weights.sum(1, keepdim=True) * len(images) if self.weights == "normalized" else hidden.sum()
        return (losses * weights / scale).sum(), {"reconstruction": plain.detach()}
