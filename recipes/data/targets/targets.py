"""What a task learns of each image: labels, lists of labels, masks or boxes."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from multilevel.levels.tasks.losses import IGNORED
from multilevel.recipes.data.augment import Geometry
from multilevel.recipes.data.images import Images, Source, unreadable, worker_count
from multilevel.recipes.data.pictures import upright
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.targets.boxes import MOST_BOXES, components, to_square
from multilevel.recipes.data.targets.masks import read_mask

_TOGETHER = 256  # images whose targets are looked through at once


class Targets(ABC):
    """Targets of the images of a set."""

    @abstractmethod
    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Targets ``[B, ...]`` of the images ``indices`` (int64 ``[B]``), moved as the images were.

        Raises:
            DataError: a broken mask or a box outside its image, by the name of its file or row.
        """

    @abstractmethod
    def count(self, indices: Tensor) -> Tensor:
        """How often each class occurs in the images ``indices``: int64, up to the last class that does."""


class Labels(Targets):
    """Labels.

    Args:
        values: int64 tensor ``[N]``, or float32 ``[N, classes]`` of 0 and 1.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        return self.values[indices]

    def count(self, indices: Tensor) -> Tensor:
        found = self.values[indices]
        return found.sum(0).long() if found.ndim > 1 else torch.bincount(found)


class Masks(Targets):
    """Masks int64 ``[B, H, W]``; counts are of pixels.

    Args:
        images: the masks as grey images of class numbers.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        masks = self.images.pixels(indices)
        return (masks if geometry is None else geometry.masks(masks))[:, 0].long()

    def count(self, indices: Tensor) -> Tensor:
        self.images.prepare(indices)
        total = torch.zeros(IGNORED + 1, dtype=torch.int64)
        for some in tqdm(indices.split(_TOGETHER), desc="reading masks", leave=False, disable=None):
            total += torch.bincount(self.images.pixels(some).flatten(), minlength=len(total))
        return total[: int(total[:IGNORED].nonzero().amax()) + 1] if total[:IGNORED].any() else total[:0]


class Boxes(Targets):
    """Boxes float32 ``[B, MOST_BOXES, 5]``, the source's own or those around the marks of its masks.

    Args:
        source: the images.
        settings: ``image_size``, ``mask_classes`` and ``min_area`` are read.
    """

    def __init__(self, source: Source, settings: DataSettings) -> None:
        self.source = source
        self.settings = settings
        self._known: dict[int, Tensor] = {}

    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        rows = indices.tolist()
        self._read([row for row in dict.fromkeys(rows) if row not in self._known])
        boxes = torch.cat([torch.empty(0, MOST_BOXES, 5), *(self._known[row][None] for row in rows)])
        return boxes if geometry is None else geometry.boxes(boxes, self.settings.image_size)

    def count(self, indices: Tensor) -> Tensor:
        numbers = self.of(indices)[..., 4]
        return torch.bincount(numbers[numbers >= 0].long())

    def _read(self, rows: list[int]) -> None:
        Image.init()  # Pillow looks for its formats on first use, which is not safe in threads
        silent = not (len(rows) > _TOGETHER and sys.stderr.isatty())
        with (
            tqdm(total=len(rows), desc="reading boxes", leave=False, disable=silent) as bar,
            ThreadPoolExecutor(worker_count(), "boxes") as pool,
        ):
            for row, boxes in zip(rows, pool.map(self._of_row, rows), strict=True):
                self._known[row] = boxes
                bar.update()

    def _of_row(self, row: int) -> Tensor:
        own = self.source.boxes
        try:
            boxes, size = self._around_marks(row) if own is None else self._inside_picture(own[row], row)
        except Exception as error:  # Pillow's formats raise errors of many kinds for broken files
            where = self.source.where_mask(row) if own is None else self.source.where(row)
            raise unreadable(where, error) from error
        return to_square(boxes, size, self.settings.image_size, self.settings.fit)

    def _around_marks(self, row: int) -> tuple[np.ndarray, tuple[int, int]]:
        mask = read_mask(self.source, row, self.settings.mask_classes)
        if mask is None:
            return np.empty((0, 5)), (1, 1)
        return components(mask, self.settings.min_area), (mask.shape[1], mask.shape[0])

    def _inside_picture(self, boxes: np.ndarray, row: int) -> tuple[np.ndarray, tuple[int, int]]:
        with self.source.open(row) as picture:
            width, height = upright(picture).size
        left, top, right, bottom = boxes[:, :4].T
        wrong = (left < -1) | (top < -1) | (right > width + 1) | (bottom > height + 1) | (right < left) | (bottom < top)
        if wrong.any():  # a pixel is left to rounding
            corners = boxes[wrong][0, :4].round(1).tolist()
            raise ValueError(
                f"a box goes from {corners[:2]} to {corners[2:]} and the image is {width} x {height} pixels; "
                "boxes are left, top, width, height"
            )
        return boxes, (width, height)
