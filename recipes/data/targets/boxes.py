"""Boxes of an image: brought to the square that the image is brought to, moved with it, found in a mask."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from multilevel.levels.tasks.losses import IGNORED

MOST_BOXES = 100  # of an image; COCO's protocol looks at no more
_KEPT_AREA = 0.25  # of a box, for it to stay: a long mark that crosses the whole picture may lose most of itself
_DIAGONALS_TOO = np.ones((3, 3))


def move(boxes: Tensor, offset: Tensor, scale: Tensor, image_size: int) -> Tensor:
    """Boxes after their images were cut and resized: clipped, those lost whose center or three quarters are cut off.

    Args:
        boxes: float32 tensor ``[B, K, 5]`` of left, top, right, bottom and class, rows of -1 without a box.
        offset: float32 tensor ``[B, 2]``, left and top of what is cut out.
        scale: float32 tensor ``[B, 2]``, pixels afterwards for each one before, across and down.
        image_size: height and width afterwards.

    Returns:
        float32 tensor ``[B, K, 5]``.
    """
    corners = (boxes[..., :4] - offset.repeat(1, 2)[:, None]) * scale.repeat(1, 2)[:, None]
    clipped = corners.clamp(0, image_size)
    center = (corners[..., :2] + corners[..., 2:]) / 2
    inside = ((center >= 0) & (center < image_size)).all(-1)
    stays = inside & (area(clipped) >= _KEPT_AREA * area(corners)) & (area(clipped) > 0) & (boxes[..., 4] >= 0)
    return torch.cat([clipped, boxes[..., 4:]], dim=-1).where(stays[..., None], -1.0)


def area(corners: Tensor) -> Tensor:
    """Areas ``[...]`` of boxes ``[..., 4]``."""
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)


def mirror_boxes(boxes: Tensor, mirrored: Tensor, image_size: int) -> Tensor:
    """Turn left and right around in the images ``mirrored`` (bool ``[B]``): ``[B, K, 5]`` to ``[B, K, 5]``."""
    left, top, right, bottom, number = boxes.unbind(-1)
    turned = torch.stack([image_size - right, top, image_size - left, bottom, number], dim=-1)
    return turned.where((mirrored[:, None] & (number >= 0))[..., None], boxes)


def boxes_in_square(boxes: np.ndarray, size: tuple[int, int], image_size: int, fit: str = "crop") -> Tensor:
    """Boxes of a picture of a width and height, in the square that it is brought to.

    Args:
        boxes: float array ``[K, 5]``, in pixels of the picture.
        size: of the picture.
        image_size: height and width of the square.
        fit: crop (the centre square is taken) or stretch (the whole picture).

    Returns:
        float32 tensor ``[MOST_BOXES, 5]``, the largest first, rows of -1 after the last.
    """
    cut = torch.tensor([size if fit == "stretch" else (min(size), min(size))], dtype=torch.float32)
    offset, scale = (torch.tensor([size]) - cut) / 2, image_size / cut
    moved = move(torch.from_numpy(boxes).float()[None], offset, scale, image_size)[0]
    moved = moved[moved[:, 4] >= 0]
    moved = moved[area(moved[:, :4]).argsort(descending=True, stable=True)][:MOST_BOXES]
    return torch.cat([moved, torch.full((MOST_BOXES - len(moved), 5), -1.0)])


def components(mask: np.ndarray, min_area: int) -> np.ndarray:
    """The bounding boxes of the connected marks of each class, neighbours across corners included.

    Args:
        mask: uint8 array ``[H, W]`` of class numbers, 0 for the background, 255 where a pixel does not count.
        min_area: marks of fewer pixels are left out.

    Returns:
        float64 array ``[K, 5]`` of left, top, right, bottom and class, counted from 0 for the first after the
        background.
    """
    boxes = [
        (across.start, down.start, across.stop, down.stop, number - 1)
        for number in np.unique(mask).tolist()
        if number not in (0, IGNORED)
        for down, across in _marks(mask == number, min_area)
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 5)


def _marks(marked: np.ndarray, min_area: int) -> list[tuple[slice, slice]]:
    """Where the connected marks of enough pixels are: rows and columns."""
    numbered, count = ndimage.label(marked, structure=_DIAGONALS_TOO)
    areas = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    places = ndimage.find_objects(numbered)
    return [mark for mark, pixels in zip(places, areas, strict=True) if pixels >= min_area]
