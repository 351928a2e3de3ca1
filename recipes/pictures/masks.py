"""Draws masks: hidden patches, their probabilities, and the reconstruction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import Tensor

from multilevel.levels import MaskedAutoencoder
from multilevel.recipes.pictures.figures import new_figure, save_figure

GREY = 0.5


def draw_masks(
    path: Path, images: Tensor, probabilities: Tensor | None, hidden: Tensor, reconstruction: Tensor, patch_size: int
) -> None:
    """Draw one row per image: the image, the probabilities as a heat map, the masked input, the reconstruction.

    Args:
        path: the PNG to write.
        images: [N, C, H, W], 0 to 1.
        probabilities: [N, L] of hiding each patch; None omits the heat map.
        hidden: [N, L], 1 where hidden.
        reconstruction: [N, C, H, W], 0 to 1.
        patch_size: pixels per side.
    """
    count, side = len(images), images.shape[-1] // patch_size
    spread = torch.kron(hidden.float().cpu().view(count, 1, side, side), torch.ones(1, 1, patch_size, patch_size))
    masked = images * (1 - spread) + GREY * spread
    titles = ["image", "probability of being hidden", "masked input", "reconstruction"]
    if probabilities is None:
        titles.remove("probability of being hidden")
    else:
        limits = (float(probabilities.min()), float(probabilities.max()))  # to make small differences visible
    figure = new_figure(1.7 * len(titles) + 0.6, 1.6 * count + 0.4)
    axes = figure.subplots(count, len(titles), squeeze=False)
    for index, row in enumerate(axes):
        pictures = dict(zip(("image", "masked input", "reconstruction"), (images, masked, reconstruction), strict=True))
        for axis, title in zip(row, titles, strict=True):
            _draw_image(axis, pictures.get(title, images)[index])
            if title not in pictures and probabilities is not None:
                grid = probabilities[index].detach().cpu().view(side, side)
                heat = _draw_heat(axis, grid, images.shape[-1], limits)
            if index == 0:
                axis.set_title(title.replace(" of ", "\nof "), fontsize=9)
    if probabilities is not None:
        figure.colorbar(heat, ax=axes[:, -1], shrink=min(1.0, 3 / count), label="probability of being hidden")
    save_figure(figure, path)


def _draw_image(axis: Axes, image: Tensor) -> None:
    pixels = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
    axis.set_axis_off()


def _draw_heat(axis: Axes, grid: Tensor, size: int, limits: tuple[float, float]) -> AxesImage:
    extent = (-0.5, size - 0.5, size - 0.5, -0.5)
    return axis.imshow(
        grid.numpy(), cmap="inferno", vmin=limits[0], vmax=limits[1], alpha=0.8, extent=extent, interpolation="nearest"
    )


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
