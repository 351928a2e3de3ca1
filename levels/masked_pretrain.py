"""Level: pretrain an encoder by reconstructing hidden patches or hidden words."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from multilevel.levels.masks import POLICIES, MaskPolicy, MaskView
from multilevel.levels.masks.statistics import STATISTICS, mask_statistics
from multilevel.problems import Problem, score_function
from multilevel.problems.levels import Levels
from multilevel.solvers.ranges import AtLeast, AtMost, Count, OneOf, check_value, require

WeightsName = Annotated[str, OneOf("normalized", "raw")]
GradientName = Annotated[str, OneOf("weights", "visibility", "both", "choice", "weights+choice")]
CHOICE = ("choice", "weights+choice")
Guidance = Annotated[float, AtLeast(0), AtMost(1)]


class MaskedPretrain(Problem):
    """Reconstruction loss of hidden patches.

    If the masking network learns from the downstream task, its probabilities enter the loss so that hypergradients
    reach it: as weights of the hidden patches' losses (as published), through the visible patches, or as the
    distribution of the masks. Otherwise the loss is the plain mean over hidden patches. Batches are (images
    [B, C, H, W], unused targets).

    Args:
        module: a MaskedAutoencoder; or a MaskedLanguageModel, with words instead of patches and texts int64 [B, L]
            instead of images.
        policy: chooses the hidden patches.
        weights: raw (the probabilities, as published; the loss can then fall through the probabilities without better
            reconstruction) or normalized (they sum to 1 in each image).
        gradient: how the loss depends on the probabilities: weights; visibility (straight-through: the token of a
            patch enters the encoder multiplied by a gate of value 1 whose derivative is that of 1 - probability, and
            the weights are uniform); both; choice (the weights are constants, and ``score_function`` estimates the
            derivative of the masks' distribution); or weights+choice.
        guidance: share of the images with masks from the policy; the others get random masks, with uniform weights.
        draws: number of masks for each image: a batch is cut to the first B / draws images, each of which is masked
            that often. The choice of each mask is then compared with the others of its image.
        mask: name of the level with the masking network; used by policies that have one.

    Raises:
        SettingError: unknown weights or gradient, guidance outside 0 to 1, or choice with a policy that does not define
            ``log_probability``.
    """

    title = "pretraining"
    panels = MappingProxyType({"reconstruction loss": ("loss", "reconstruction"), "similarity of masks": STATISTICS})

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        policy: MaskPolicy,
        weights: str = "normalized",
        gradient: str = "weights",
        guidance: float = 1.0,
        draws: int = 1,
        mask: str = "mask",
        **keywords: Any,
    ) -> None:
        super().__init__(name, module, **keywords)
        check_value("mask.weights", weights, WeightsName)
        check_value("mask.gradient", gradient, GradientName)
        check_value("mask.guidance", guidance, Guidance)
        check_value("mask.draws", draws, Count)
        check_choice(gradient, type(policy))
        self.policy = policy
        self.weights = weights
        self.guidance = guidance
        self.draws = draws
        self.mask = mask
        downstream = policy.learns_from == "downstream"
        self._weighted = downstream and gradient != "visibility"
        self._gated = downstream and gradient in ("visibility", "both")
        self._fixed_weights = gradient == "choice"
        self._choice = gradient in CHOICE

    def draw(self, levels: Levels, batch: Any) -> dict[str, Any]:
        """Draw ``scores`` [B, L], whose largest mark the hidden patches; ``guided`` bool [B], the images masked by the
        policy; and with a masking network the ``statistics`` of the masks, see ``mask_statistics``."""
        view = MaskView.of(levels, self._images(batch), self.name, self.mask)
        scores = self.policy.scores(view)
        # Batches are shuffled, so the first images are a random choice. A random part makes the share exact on average.
        position = torch.arange(len(scores), device=scores.device)
        guided = position + torch.rand((), device=scores.device, dtype=torch.float64) < self.guidance * len(scores)
        scores = torch.where(guided[:, None], scores, torch.rand_like(scores))
        if self.policy.learns_from is None:
            return {"scores": scores, "guided": guided, "statistics": {}}
        hidden = scores.argsort(1).argsort(1) >= view.patches - view.hidden
        statistics = mask_statistics(view.logits.sigmoid(), hidden, guided)
        return {"scores": scores, "guided": guided, "statistics": statistics}

    def outputs(self, levels: Levels, batch: Any, draws: dict[str, Any]) -> list[Tensor]:
        """Predicted pixels [B, L, patch * patch * C] and the mask [B, L], 1 where hidden."""
        images, gate = self._images(batch), None
        if self._gated:
            probabilities = getattr(levels, self.mask)(images).sigmoid()
            gate = 1 - draws["guided"][:, None] * (probabilities - probabilities.detach())
        return list(getattr(levels, self.name).reconstruct(images, draws["scores"], gate))

    def criterion(
        self, outputs: list[Tensor], levels: Levels, batch: Any, draws: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        images = self._images(batch)
        prediction, hidden = outputs
        losses = getattr(levels, self.name).patch_losses(images, prediction)
        plain = (losses * hidden).sum() / hidden.sum()
        if not self._weighted:
            return plain, draws["statistics"]
        view = MaskView.of(levels, images, self.name, self.mask)
        log_probabilities = logsigmoid(view.logits)
        log_weights = torch.where(draws["guided"][:, None], log_probabilities, 0.0)
        if self._fixed_weights:
            log_weights = log_weights.detach()
        if self.weights == "normalized":  # in the logarithm: an image's probabilities may all underflow float32
            weights = log_weights.masked_fill(hidden == 0, -torch.inf).softmax(1) / len(images)
        else:
            weights = log_weights.exp() * hidden / hidden.sum()
        if self._choice:  # of the weights instead of the losses, so that the sum stays the same bit for bit
            likelihood = self.policy.log_probability(view, draws["scores"], hidden > 0)
            likelihood = torch.where(draws["guided"], likelihood, 0.0)  # random masks do not depend on the network
            weights = weights * score_function(torch.ones_like(likelihood), likelihood, self.draws)[:, None]
        return (losses * weights).sum(), {"reconstruction": plain.detach(), **draws["statistics"]}

    def _images(self, batch: Any) -> Tensor:
        """The images [B, ...] of a batch, the first of them several times with several draws."""
        if self.draws == 1:
            return batch[0]
        images = batch[0][: len(batch[0]) // self.draws]
        return images.repeat(self.draws, *[1] * (images.ndim - 1))


def check_choice(gradient: str, policy: type[MaskPolicy]) -> None:
    """Raise SettingError if the gradient is that of a choice, and the policy cannot give its likelihood."""
    able = ", ".join(name for name, kind in POLICIES.items() if kind.has_differentiable_choice())
    usable = gradient not in CHOICE or policy.has_differentiable_choice()
    remedy = "weights, visibility or both, since choice needs a mask.policy that gives the likelihood of a draw"
    require("mask.gradient", gradient, usable, f"{remedy}: {able}")
