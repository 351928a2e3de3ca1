"""Draws masks: the probability that each patch is hidden, hidden patches, and the reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from torch import Tensor

from multilevel.levels import MaskedAutoencoder
from multilevel.recipes.pictures.figures import new_figure, save_figure, styled

MASKED = 0.5  # the grey of hidden patches
NARROWEST = 0.1  # a smaller distance from the mask ratio is pale; it may come from the draws of the estimate
COLUMNS = ("image", "masked input", "reconstruction", "probability of\nbeing hidden")


@styled
def draw_masks(
    path: Path,
    images: Tensor,
    probabilities: Tensor,
    hidden: Tensor,
    reconstruction: Tensor,
    patch_size: int,
    labels: Sequence[str],
    title: str,
) -> None:
    """Draw a row for each image: the image, the masked input, its reconstruction, and the probabilities, whose scale is
    white at the mask ratio.

    Args:
        path: the PNG to write.
        images: [N, C, H, W], 0 to 1.
        probabilities: [N, L] of hiding each patch.
        hidden: [N, L], 1 where hidden.
        reconstruction: [N, C, H, W], 0 to 1.
        patch_size: pixels per side.
        labels: N names of the images.
        title: the title above the picture.
    """
    count, side = len(images), images.shape[-1] // patch_size
    spread = torch.kron(hidden.float().cpu().view(count, 1, side, side), torch.ones(1, 1, patch_size, patch_size))
    masked = images * (1 - spread) + MASKED * spread
    grids = probabilities.cpu().view(count, side, side).numpy()
    ratio = float(grids.mean())
    lowest, highest = min(ratio - NARROWEST, float(grids.min())), max(ratio + NARROWEST, float(grids.max()))
    scale = TwoSlopeNorm(ratio, lowest, highest)
    figure = new_figure(7.6, 1.35 * count + 0.9)
    axes = figure.subplots(count, len(COLUMNS), squeeze=False)
    for index, row in enumerate(axes):
        for axis, pictures in zip(row, (images, masked, reconstruction), strict=False):
            axis.imshow(_pixels(pictures[index]))
        heat = row[-1].imshow(grids[index], cmap="PuOr_r", norm=scale)
        row[0].set_ylabel(labels[index], rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
    for axis in axes.flat:
        _bare(axis)
    for axis, name in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(name, fontsize=10, loc="center")
    bar = figure.colorbar(heat, ax=axes[:, -1], aspect=12 * count, pad=0.08)
    ticks = {lowest: f"{lowest:.2f}", ratio: f"{ratio:.2f}, the\nmask ratio", highest: f"{highest:.2f}"}
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)


def _pixels(image: Tensor) -> np.ndarray:
    pixels = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _bare(axis: Axes) -> None:
    """Without ticks, grid and frame."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.grid(False)


@torch.no_grad()
def reconstruct_pixels(
    model: MaskedAutoencoder, images: Tensor, scores: Tensor, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Reconstruct images from their visible patches, for display.

    The model predicts pixels normalized within each patch; the true patch's mean and deviation undo this, as in the
    pictures of He et al. (2022). Visible patches are taken from the image.

    Args:
        model: the autoencoder.
        images: [N, C, H, W], normalized.
        scores: [N, L]; the patches with the largest are hidden.
        mean, std: [C], of the normalization.

    Returns:
        The mask [N, L], 1 where hidden, and the pictures [N, C, H, W], 0 to 1.
    """
    prediction, mask = model.reconstruct(images, scores)
    patches = model.mae.patchify(images)
    deviation = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    predicted = prediction * deviation + patches.mean(-1, keepdim=True)
    whole = model.mae.unpatchify(torch.where(mask[..., None] > 0, predicted, patches))
    pictures = whole * std.to(images.device)[:, None, None] + mean.to(images.device)[:, None, None]
    return mask, pictures.clamp(0, 1)
