"""Mixup and cutmix: combine pairs of images in a batch, and their targets in the same proportion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[int, int, int, int]


def soft_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Convert labels int64 [B] to probabilities [B, classes]: 1 - smoothing on the label, plus smoothing spread over
    all classes."""
    spread = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return spread.scatter_add(1, labels[:, None], torch.full_like(spread[:, :1], 1 - smoothing))


def mixup(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend ``share`` of each image with the rest from its partner, pixel by pixel (Zhang et al. 2018).

    Args:
        images: [B, C, H, W]; the partner of the first is the last, and so on.
        targets: probabilities [B, classes].
        share: 0 to 1.
    """
    return share * images + (1 - share) * images.flip(0), share * targets + (1 - share) * targets.flip(0)


def cutmix(images: Tensor, targets: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Paste a box of its partner into each image, and mix targets in proportion to the areas (Yun et al. 2019).

    Args:
        images: [B, C, H, W]; the partner of the first is the last, and so on.
        targets: probabilities [B, classes].
        box: first row, row after the last, first column, column after the last.
    """
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    return mixed, share * targets + (1 - share) * targets.flip(0)


def draw_box(size: int, share: float) -> Box:
    """Draw a square of area ``1 - share`` around a random pixel, clipped to the image.

    Args:
        size: pixels per side of the image.
        share: 0 to 1.
    """
    half = int(size * (1 - share) ** 0.5) // 2
    row, column = torch.randint(size, (2,)).tolist()
    ends = [(max(middle - half, 0), min(middle + half, size)) for middle in (row, column)]
    return (*ends[0], *ends[1])


@dataclass(frozen=True)
class Mixing:
    """Label smoothing, then mixup or cutmix of a whole batch, each with probability one half if both are on.

    Args:
        classes: number of classes.
        label_smoothing: 0 to 1.
        mixup: shares are Beta(mixup, mixup); 0 is off.
        cutmix: shares are Beta(cutmix, cutmix); 0 is off.
    """

    classes: int
    label_smoothing: float
    mixup: float
    cutmix: float

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, S, S] and labels int64 [B] to images and probabilities [B, classes].

        Draws from torch's global CPU generator.
        """
        targets = soft_targets(labels, self.classes, self.label_smoothing)
        pastes = self.cutmix > 0 and (self.mixup == 0 or torch.rand(()).item() < 0.5)
        strength = self.cutmix if pastes else self.mixup
        if strength == 0:
            return images, targets
        share = torch.distributions.Beta(strength, strength).sample().item()
        if pastes:
            return cutmix(images, targets, draw_box(images.shape[-1], share))
        return mixup(images, targets, share)
