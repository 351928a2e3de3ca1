"""Draws images of each class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from multilevel.recipes.pictures.figures import new_figure, save_figure, styled


@styled
def draw_images(path: Path, images: Mapping[str, Tensor]) -> None:
    """Draw one column per class, with its name.

    Args:
        path: the PNG to write.
        images: images of each class [N, C, H, W], 0 to 1, with the same N; values outside the range are clipped.
    """
    count = max(len(pictures) for pictures in images.values())
    figure = new_figure(0.8 * len(images) + 0.2, 0.8 * count + 0.3)
    columns = figure.subplots(count, len(images), squeeze=False).T
    for (name, pictures), column in zip(images.items(), columns, strict=True):
        column[0].set_title(name, fontsize=9, loc="center", parse_math=False)
        for image, axis in zip(pictures, column, strict=True):
            pixels = image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    save_figure(figure, path)
