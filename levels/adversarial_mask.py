"""Level: train the masking network to make reconstruction hard."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor

from multilevel.levels.masks import MaskPolicy, MaskView
from multilevel.levels.masks.statistics import normalized_entropy
from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class AdversarialMask(Problem):
    """The negative reconstruction loss of the hidden patches, weighted by the masking network's probabilities.

    The weights sum to 1 in each image. The patches' losses are constants, so the gradient is direct: probabilities rise
    where the autoencoder fails (after ADIOS, Shi et al. 2022, whose soft masks let the gradient pass through the
    encoder instead). Batches are (images [B, C, H, W], unused targets).

    Args:
        policy: chooses the hidden patches.
        entropy_bonus: weight of the entropy of each image's probabilities (0 to 1), which is subtracted from the loss.
        pretrain: name of the level with the autoencoder.
    """

    title = "mask learning"
    panels = MappingProxyType({"negative reconstruction loss": ("loss",), "reconstruction loss": ("reconstruction",)})

    def __init__(
        self,
        *arguments: Any,
        policy: MaskPolicy,
        entropy_bonus: float = 0.0,
        pretrain: str = "pretrain",
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.policy = policy
        self.entropy_bonus = entropy_bonus
        self.pretrain = pretrain

    def draw(self, levels: Levels, batch: Any) -> dict[str, Tensor]:
        """The ``mask`` [B, L], 1 where hidden, and each patch's ``losses`` [B, L]."""
        images, autoencoder = batch[0], getattr(levels, self.pretrain)
        scores = self.policy.scores(MaskView.of(levels, images, self.pretrain, self.name))
        prediction, hidden = autoencoder.reconstruct(images, scores)
        return {"mask": hidden, "losses": autoencoder.patch_losses(images, prediction)}

    def loss(self, levels: Levels, batch: Any, draws: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        probabilities = getattr(levels, self.name)(batch[0]).sigmoid()
        weights = probabilities * draws["mask"]
        weights = weights / weights.sum(1, keepdim=True)
        loss = -(draws["losses"] * weights).sum(1).mean()
        plain = (draws["losses"] * draws["mask"]).sum() / draws["mask"].sum()
        if self.entropy_bonus > 0:
            loss = loss - self.entropy_bonus * normalized_entropy(probabilities)
        return loss, {"reconstruction": plain}
