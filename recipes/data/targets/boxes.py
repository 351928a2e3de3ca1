"""Boxes of an image: resizes and moves them with the image, and finds them in a mask."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from multilevel.levels.tasks.losses import IGNORED
from multilevel.recipes.data.pictures import SIDEWAYS

MOST_BOXES = 100  # per image; COCO's protocol uses no more
_KEPT_AREA = 0.25  # smallest visible share of a box to keep; a mark across the whole picture may lose most of its area
_DIAGONALS_TOO = np.ones((3, 3))


def move(boxes: Tensor, offset: Tensor, scale: Tensor, image_size: int) -> Tensor:
    """Transform boxes with their cropped and resized images. Boxes are clipped, and dropped if their center or three
    quarters are cut off.

    Args:
        boxes: float32 tensor ``[B, K, 5]`` of left, top, right, bottom and class, rows of -1 without a box.
        offset: float32 tensor ``[B, 2]``, left and top of the crop.
        scale: float32 tensor ``[B, 2]``, pixels after per pixel before, horizontally and vertically.
        image_size: height and width after the transformation.

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
    """Swap left and right in the images ``mirrored`` (bool ``[B]``): ``[B, K, 5]`` to ``[B, K, 5]``."""
    left, top, right, bottom, number = boxes.unbind(-1)
    turned = torch.stack([image_size - right, top, image_size - left, bottom, number], dim=-1)
    return turned.where((mirrored[:, None] & (number >= 0))[..., None], boxes)


def boxes_in_square(boxes: np.ndarray, size: tuple[int, int], image_size: int, fit: str = "crop") -> Tensor:
    """Convert boxes from a picture to its square.

    Args:
        boxes: float array ``[K, 5]``, in pixels of the picture.
        size: size of the picture.
        image_size: height and width of the square.
        fit: crop (the centre square) or stretch (the whole picture).

    Returns:
        float32 tensor ``[MOST_BOXES, 5]``, largest first, rows of -1 after the last.
    """
    cut = torch.tensor([size if fit == "stretch" else (min(size), min(size))], dtype=torch.float32)
    offset, scale = (torch.tensor([size]) - cut) / 2, image_size / cut
    moved = move(torch.from_numpy(boxes).float()[None], offset, scale, image_size)[0]
    moved = moved[moved[:, 4] >= 0]
    moved = moved[area(moved[:, :4]).argsort(descending=True, stable=True)][:MOST_BOXES]
    return torch.cat([moved, torch.full((MOST_BOXES - len(moved), 5), -1.0)])


def turn_size(size: tuple[int, int], tag: int) -> tuple[int, int]:
    """Width and height after turning a picture of a size as its orientation tag says, or before.

    >>> turn_size((4, 3), 6)
    (3, 4)
    """
    return (size[1], size[0]) if tag in SIDEWAYS else size


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], tag: int) -> np.ndarray:
    """Turn boxes of the stored pixels of a picture with them, as its orientation tag says.

    Args:
        boxes: float array ``[K, 5]`` of left, top, right, bottom and class.
        size: width and height of the stored pixels.
        tag: from 1 to 8, see Exif 2.32, section 4.6.4.

    >>> turn_boxes(np.array([[0, 0, 1, 2, 7]]), (4, 3), 6).tolist()
    [[1, 0, 3, 1, 7]]
    """
    left, top, right, bottom, number = boxes.T
    if tag in (2, 3, 7, 8):
        left, right = size[0] - right, size[0] - left
    if tag in (3, 4, 6, 7):
        top, bottom = size[1] - bottom, size[1] - top
    if tag in SIDEWAYS:
        left, top, right, bottom = top, left, bottom, right
    return np.column_stack([left, top, right, bottom, number])


def components(mask: np.ndarray, min_area: int) -> np.ndarray:
    """The bounding boxes of the connected marks of each class, with diagonal neighbours connected.

    Args:
        mask: uint8 array ``[H, W]`` of class numbers, 0 for the background, 255 for pixels to ignore.
        min_area: marks with fewer pixels are ignored.

    Returns:
        float64 array ``[K, 5]`` of left, top, right, bottom and class, counted from 0 for the first class after the
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
    """The row and column ranges of connected marks with enough pixels."""
    numbered, count = ndimage.label(marked, structure=_DIAGONALS_TOO)
    areas = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    places = ndimage.find_objects(numbered)
    return [mark for mark, pixels in zip(places, areas, strict=True) if pixels >= min_area]
