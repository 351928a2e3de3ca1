"""Random crops and mirror images of a whole batch at once, drawn from a given generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from multilevel.recipes.data.targets.boxes import mirror_boxes, move

_TRIES = 10
_WIDEST = 4 / 3  # largest ratio of a crop's sides


def draw_boxes(count: int, image_size: int, crop_scale: float, generator: torch.Generator) -> Tensor:
    """Boxes for random resized crops.

    A box's share of the area is uniform from ``crop_scale`` to 1, its shape log-uniform from 3/4 to 4/3. A box that
    does not fit is drawn again, at most ten times; then the whole image is taken.

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


def crop(images: Tensor, boxes: Tensor, mode: str = "bilinear") -> Tensor:
    """Cut a box out of every image and resize it to the image's size.

    Pixels outside a box have no effect: interpolation at its edge repeats the outermost pixels.

    Args:
        images: float32 tensor ``[B, C, S, S]``.
        boxes: float32 tensor ``[B, 4]`` of top, left, height and width, in pixels.
        mode: bilinear, or nearest for values that must not be interpolated.

    Returns:
        float32 tensor ``[B, C, S, S]``.
    """
    size = images.shape[-1]
    top, left, height, width = (boxes * (2 / size)).unbind(1)  # the grid spans -1 to 1
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 0, 2] = width / 2, left + width / 2 - 1
    affine[:, 1, 1], affine[:, 1, 2] = height / 2, top + height / 2 - 1
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    half_pixel = 1 / size
    smallest = torch.stack([left, top], dim=1)[:, None, None] - 1 + half_pixel
    largest = torch.stack([left + width, top + height], dim=1)[:, None, None] - 1 - half_pixel
    grid = torch.minimum(torch.maximum(grid, smallest), largest)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror some images left to right.

    Args:
        images: tensor ``[B, C, H, W]``.
        mirrored: bool tensor ``[B]``.
    """
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class Geometry:
    """The random draws for one batch's images, to apply to both pixels and targets.

    Args:
        crops: float32 tensor ``[B, 4]`` of top, left, height and width, in pixels; ``None`` crops nothing.
        mirrored: bool tensor ``[B]``; ``None`` mirrors nothing.
    """

    crops: Tensor | None
    mirrored: Tensor | None

    def __getitem__(self, images: slice) -> Geometry:
        """The draws for some of the images."""
        crops, mirrored = self.crops, self.mirrored
        return Geometry(None if crops is None else crops[images], None if mirrored is None else mirrored[images])

    def images(self, images: Tensor) -> Tensor:
        """Transform a uint8 tensor ``[B, C, S, S]``, keeping its scale: float32 after a crop, otherwise uint8."""
        if self.crops is not None:
            images = crop(images.float(), self.crops)
        return images if self.mirrored is None else mirror(images, self.mirrored)

    def masks(self, masks: Tensor) -> Tensor:
        """Transform a uint8 tensor ``[B, 1, S, S]`` by nearest-neighbour interpolation, so that its values stay
        valid."""
        if self.crops is not None:
            masks = crop(masks.float(), self.crops, mode="nearest").to(masks.dtype)
        return masks if self.mirrored is None else mirror(masks, self.mirrored)

    def boxes(self, boxes: Tensor, image_size: int) -> Tensor:
        """Transform a float32 tensor ``[B, K, 5]``, see ``boxes.move``: boxes are clipped, and dropped if mostly cut
        off."""
        if self.crops is not None:
            top, left, height, width = self.crops.unbind(1)
            scale = image_size / torch.stack([width, height], dim=1)
            boxes = move(boxes, torch.stack([left, top], dim=1), scale, image_size)
        return boxes if self.mirrored is None else mirror_boxes(boxes, self.mirrored, image_size)


def draw_geometry(count: int, image_size: int, flip: bool, crop_scale: float, generator: torch.Generator) -> Geometry:
    """Draw a random resized crop for each image, then whether to mirror it, with probability one half.

    Args:
        count: images in the batch.
        image_size: height and width.
        flip: whether images are mirrored.
        crop_scale: smallest share of an image's area that a crop keeps; 1.0 crops nothing.
        generator: a CPU generator, the only source of randomness.
    """
    crops = draw_boxes(count, image_size, crop_scale, generator) if crop_scale < 1 else None
    return Geometry(crops, torch.rand(count, generator=generator) < 0.5 if flip else None)
