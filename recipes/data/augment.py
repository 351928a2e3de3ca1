"""Random crops and mirror images of a whole batch at once, drawn from a generator that is given."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_TRIES = 10
_WIDEST = 4 / 3  # a crop is at most this much wider than high, or higher than wide


def draw_boxes(count: int, image_size: int, crop_scale: float, generator: torch.Generator) -> Tensor:
    """Boxes for random resized crops.

    A box's share of the area is uniform from ``crop_scale`` to 1, its shape log-uniform from 3/4 to 4/3.
    One that would not fit is drawn again, ten times at most; then the whole image is taken.

    Returns:
        float32 tensor ``[count, 4]`` of top, left, height and width, in pixels.
    """
    draws = torch.rand((4, _TRIES, count), generator=generator)
    area = crop_scale + (1 - crop_scale) * draws[0]
    shape = torch.exp((2 * draws[1] - 1) * math.log(_WIDEST))
    heights, widths = (area / shape).sqrt(), (area * shape).sqrt()
    fits = (heights <= 1) & (widths <= 1)
    first = fits.int().argmax(0, keepdim=True)
    never = ~fits.any(0)
    height = heights.gather(0, first)[0].masked_fill(never, 1.0)
    width = widths.gather(0, first)[0].masked_fill(never, 1.0)
    top, left = draws[2, 0] * (1 - height), draws[3, 0] * (1 - width)
    return torch.stack([top, left, height, width], dim=1) * image_size


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut a box out of every image and resize it to the image's size, bilinearly.

    Nothing outside a box is seen: at its edge the outermost pixels are repeated.

    Args:
        images: float32 tensor ``[B, C, S, S]``.
        boxes: float32 tensor ``[B, 4]`` of top, left, height and width, in pixels.

    Returns:
        float32 tensor ``[B, C, S, S]``.
    """
    size = images.shape[-1]
    top, left, height, width = (boxes * (2 / size)).unbind(1)  # the grid counts from -1 to 1
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 0, 2] = width / 2, left + width / 2 - 1
    affine[:, 1, 1], affine[:, 1, 2] = height / 2, top + height / 2 - 1
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    half_pixel = 1 / size
    smallest = torch.stack([left, top], dim=1)[:, None, None] - 1 + half_pixel
    largest = torch.stack([left + width, top + height], dim=1)[:, None, None] - 1 - half_pixel
    grid = torch.minimum(torch.maximum(grid, smallest), largest)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Turn left and right around in some images.

    Args:
        images: tensor ``[B, C, H, W]``.
        mirrored: bool tensor ``[B]``.
    """
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def augment(images: Tensor, flip: bool, crop_scale: float, generator: torch.Generator) -> Tensor:
    """Random resized crop, then a mirror image with a chance of one half.

    Args:
        images: uint8 tensor ``[B, C, S, S]``.
        flip: whether images are mirrored.
        crop_scale: smallest share of an image's area that a crop keeps; 1.0 crops nothing.
        generator: a CPU generator, the only one that is drawn from.

    Returns:
        The images on the same scale of 0 to 255: float32 after a crop, otherwise uint8.
    """
    if crop_scale < 1:
        images = crop(images.float(), draw_boxes(len(images), images.shape[-1], crop_scale, generator))
    if flip:
        images = mirror(images, torch.rand(len(images), generator=generator) < 0.5)
    return images
