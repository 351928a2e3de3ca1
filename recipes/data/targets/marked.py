"""Targets that are marked in the images: masks and boxes."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from multilevel.levels.tasks.losses import IGNORED
from multilevel.recipes.data.augment import Geometry
from multilevel.recipes.data.images import Images, Source, SourceSplits, StreamedImages, unreadable, worker_count
from multilevel.recipes.data.pictures import stored_orientation, upright
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.targets.base import OpenImages, Pair, Targets
from multilevel.recipes.data.targets.boxes import MOST_BOXES, boxes_in_square, components, turn_boxes, turn_size
from multilevel.recipes.data.targets.masks import MaskSource, mask_splits, read_mask
from multilevel.solvers.errors import DataError, SettingError

_MARKS = ("without marks", "with marks")
_TOGETHER = 256  # images whose targets are examined at once


class MarkedTargets(Targets):
    """Targets from masks."""

    marked = True
    background: tuple[str, ...] = ()

    @classmethod
    def check(cls, sources: SourceSplits, settings: DataSettings) -> None:
        if not sources.train.has_masks:
            raise DataError(
                f"data={settings.name} has no masks for this task: expected masks/CLASS/NAME.png for "
                "CLASS/NAME.jpg, or NAME_mask.png next to NAME.jpg (in a table, a column of images: data.mask_column)"
            )
        if settings.mask_classes == "labels" and not 2 <= len(sources.class_names) < IGNORED:
            expected = f"binary or values, since the images have no labels or more than {IGNORED - 1} classes"
            raise SettingError("data.mask_classes", settings.mask_classes, expected)

    @classmethod
    def label(cls, sources: SourceSplits, settings: DataSettings) -> SourceSplits:
        """Label images of fewer than two classes by whether they have any mark."""
        if len(sources.class_names) > 1:
            return sources
        train, test = sources.train, sources.test
        labelled = train.labels >= 0 if sources.class_names else torch.ones(len(train), dtype=torch.bool)
        train.labels = torch.where(labelled, cls.has_marks(train, settings).long(), -1)
        if test is not None:  # nothing is split off it, so it is not read
            test.labels = torch.zeros(len(test), dtype=torch.int64)
        return replace(sources, class_names=_MARKS)

    @classmethod
    def has_marks(cls, source: Source, settings: DataSettings) -> Tensor:
        """Whether each image has any mark: bool ``[N]``.

        Raises:
            DataError: a broken mask.
        """
        size = settings.image_size
        masks = StreamedImages(MaskSource(source, size, settings.mask_classes, settings.fit), size, 1)
        batches = torch.arange(len(source)).split(_TOGETHER)
        pixels = (
            masks.pixels(rows).flatten(1) for rows in tqdm(batches, desc="reading masks", leave=False, disable=None)
        )
        return torch.cat([((values > 0) & (values != IGNORED)).any(1) for values in pixels])

    @classmethod
    def class_names(cls, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
        first = len(cls.background)
        if not counts[first:].any():
            raise DataError(
                f"data={settings.name}: nothing is marked in the training masks with data.mask_classes="
                f"{settings.mask_classes} (binary and labels: pixels above half of white; values: class numbers)"
            )
        if settings.mask_classes == "binary":
            return (*cls.background, "defect")
        if settings.mask_classes == "labels":
            return (*cls.background, *sources.class_names)
        return (*cls.background, *(str(number + 1 - first) for number in range(first, len(counts))))


class Masks(MarkedTargets):
    """Masks int64 ``[B, H, W]``; counts are of pixels.

    Args:
        images: the masks as grey images of class numbers.
    """

    background = ("background",)

    def __init__(self, images: Images) -> None:
        self.images = images

    @classmethod
    def open(cls, sources: SourceSplits, settings: DataSettings, open_images: OpenImages) -> Pair:
        train, test = open_images(mask_splits(sources, settings), 1)
        return cls(train), cls(test)

    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        masks = self.images.pixels(indices)
        return (masks if geometry is None else geometry.masks(masks))[:, 0].long()

    def count(self, indices: Tensor) -> Tensor:
        self.images.prepare(indices)
        total = torch.zeros(IGNORED + 1, dtype=torch.int64)
        for rows in tqdm(indices.split(_TOGETHER), desc="reading masks", leave=False, disable=None):
            total += torch.bincount(self.images.pixels(rows).flatten(), minlength=len(total))
        return total[: int(total[:IGNORED].nonzero().amax()) + 1] if total[:IGNORED].any() else total[:0]


class Boxes(MarkedTargets):
    """Boxes float32 ``[B, MOST_BOXES, 5]``, the source's own or the bounding boxes of its masks' marks.

    Args:
        source: the images.
        settings: ``image_size``, ``mask_classes`` and ``min_area`` are read.
    """

    boxed = True

    def __init__(self, source: Source, settings: DataSettings) -> None:
        self.source = source
        self.settings = settings
        self._known: dict[int, Tensor] = {}

    @classmethod
    def check(cls, sources: SourceSplits, settings: DataSettings) -> None:
        if sources.train.boxes is None:
            super().check(sources, settings)

    @classmethod
    def has_marks(cls, source: Source, settings: DataSettings) -> Tensor:
        if source.boxes is None:
            return super().has_marks(source, settings)
        return torch.tensor([len(boxes) > 0 for boxes in source.boxes])

    @classmethod
    def class_names(cls, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
        return (
            sources.target_names if sources.train.boxes is not None else super().class_names(sources, settings, counts)
        )

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
        known = self.source.boxes
        try:
            boxes, size = self._around_marks(row) if known is None else self._inside_picture(known[row], row)
        except Exception as error:  # Pillow's formats raise errors of many kinds for broken files
            image = self.source.describe_mask(row) if known is None else self.source.describe_row(row)
            raise unreadable(image, error) from error
        return boxes_in_square(boxes, size, self.settings.image_size, self.settings.fit)

    def _around_marks(self, row: int) -> tuple[np.ndarray, tuple[int, int]]:
        mask = read_mask(self.source, row, self.settings.mask_classes)
        if mask is None:
            return np.empty((0, 5)), (1, 1)
        return components(mask, self.settings.min_area), (mask.shape[1], mask.shape[0])

    def _inside_picture(self, boxes: np.ndarray, row: int) -> tuple[np.ndarray, tuple[int, int]]:
        with self.source.open(row) as picture:
            tag = stored_orientation(picture)
            width, height = turn_size(upright(picture).size, tag)
        left, top, right, bottom = boxes[:, :4].T
        wrong = (left < -1) | (top < -1) | (right > width + 1) | (bottom > height + 1) | (right < left) | (bottom < top)
        if wrong.any():  # one pixel of tolerance for rounding
            corners = boxes[wrong][0, :4].round(1).tolist()
            raise ValueError(
                f"a box goes from {corners[:2]} to {corners[2:]} and the image is {width} x {height} pixels; "
                "boxes are left, top, width, height"
            )
        return turn_boxes(boxes, (width, height), tag), turn_size((width, height), tag)
