"""Tiles of a source's pictures, as a source of images."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from math import ceil, floor

import numpy as np
import torch
from PIL import Image

from multilevel.levels.tasks.losses import IGNORED
from multilevel.recipes.data.good import named_good
from multilevel.recipes.data.images import Source, SourceSplits, check_readable, unreadable, worker_count
from multilevel.recipes.data.pictures import stored_orientation, to_colours, upright
from multilevel.recipes.data.raster import bounded
from multilevel.recipes.data.rows import Rows
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.targets.base import Labels, Targets
from multilevel.recipes.data.targets.boxes import turn_boxes, turn_size
from multilevel.recipes.data.targets.masks import read_mask
from multilevel.recipes.data.tiles import OVERLAP, Box, Tiling, upright_size
from multilevel.solvers.errors import DataError, SettingError


class TiledSource(Source):
    """The tiles of the pictures of a source, picture by picture.

    A tile has the label of its picture, see ``mark``. The tiles of a picture are of one group.

    Args:
        pictures: the source.
        tiling: how to cut.
        channels: 1 or 3.
        good: number of the good class; None without classes.

    Attributes:
        picture_of: int64 ``[N]``, the row of each tile's picture.
    """

    def __init__(self, pictures: Source, tiling: Tiling, channels: int, good: int | None) -> None:
        self.pictures, self.tiling, self.channels, self.good = pictures, tiling, channels, good
        if not hasattr(pictures, "digests"):
            pictures.digests = {}
        with ThreadPoolExecutor(worker_count(), "sizes") as pool:
            self.tiles: list[list[Box]] = list(pool.map(self._boxes_of, range(len(pictures))))
        counts = [len(boxes) for boxes in self.tiles]
        self.picture_of = np.repeat(np.arange(len(pictures)), counts)
        self.firsts = np.cumsum([0, *counts])
        rows = torch.from_numpy(self.picture_of)
        self.labels = pictures.labels[rows]
        self.groups = rows if pictures.groups is None else pictures.groups[rows]
        self._local = threading.local()

    @property
    def whole(self) -> Source:
        return self.pictures

    def _boxes_of(self, picture: int) -> list[Box]:
        try:
            with self.pictures.open(picture) as opened:
                return self.tiling.boxes(*upright_size(opened))
        except Exception:  # broken: decoding will report it
            return self.tiling.boxes(1, 1)

    def open(self, row: int) -> Image.Image:
        """One tile; each thread keeps its last picture, so that one is decoded once for tiles in order."""
        number = int(self.picture_of[row])
        if getattr(self._local, "number", None) != number:
            with bounded(self.pictures.open(number)) as picture:
                picture.load()
                self._local.picture = to_colours(upright(picture), self.channels, self.pictures.pixel_range)
            self._local.number = number
        return self._local.picture.crop(self.tiles[number][row - self.firsts[number]])

    def picture(self, row: int) -> int:
        return int(self.picture_of[row])

    def describe_row(self, row: int) -> str:
        return self.pictures.describe_row(self.picture(row))

    def check_contents(self, row: int) -> None:
        self.pictures.check_contents(self.picture(row))

    def rows_of(self, pictures: np.ndarray) -> np.ndarray:
        """The rows of all tiles of some pictures (int64), sorted."""
        return np.flatnonzero(np.isin(self.picture_of, pictures))

    def mark(self, pictures: np.ndarray, mask_classes: str) -> tuple[int, int]:
        """Give tiles without a marked pixel the good class, in those of some pictures (int64) that have any mark.

        Args:
            pictures: rows of labelled pictures.
            mask_classes: see ``DataSettings``.

        Returns:
            The number of tiles that were given the good class, and of all tiles in pictures with marks.

        Raises:
            DataError: masks that cannot be read.
        """
        assert self.good is not None
        defective = [int(row) for row in pictures if int(self.pictures.labels[row]) != self.good]
        problems: dict[int, DataError] = {}

        def marks(number: int) -> np.ndarray | None:
            try:
                return self._marked(number, mask_classes)
            except Exception as error:  # Pillow's formats raise errors of many kinds for broken files
                problems[number] = unreadable(self.pictures.describe_mask(number), error)
                return None

        with ThreadPoolExecutor(worker_count(), "masks") as pool:
            found = list(pool.map(marks, defective))
        check_readable(problems)
        unmarked = total = 0
        for number, marked in zip(defective, found, strict=True):
            if marked is not None and marked.any():
                tiles = torch.from_numpy(self.firsts[number] + np.flatnonzero(~marked))
                self.labels[tiles] = self.good
                unmarked, total = unmarked + len(tiles), total + len(marked)
        return unmarked, total

    def _marked(self, number: int, mask_classes: str) -> np.ndarray | None:
        """Whether each tile of a picture has a marked pixel: bool ``[tiles]``; None without marks."""
        tiles = np.array(self.tiles[number])
        if self.pictures.boxes is not None:
            with self.pictures.open(number) as picture:
                tag, size = stored_orientation(picture), upright_size(picture)
            boxes = turn_boxes(self.pictures.boxes[number], turn_size(size, tag), tag)
            left, top, right, bottom = boxes[:, :4].T[:, :, None]
            inside = (left < tiles[:, 2]) & (right > tiles[:, 0]) & (top < tiles[:, 3]) & (bottom > tiles[:, 1])
            return inside.any(0)
        mask = read_mask(self.pictures, number, mask_classes) if self.pictures.has_masks else None
        if mask is None:
            return None
        marked = (mask > 0) & (mask != IGNORED)
        # a mask may be of another size than its picture
        across, down = np.array(mask.shape[::-1]) / tiles[:, 2:].max(0)
        parts = (
            marked[floor(top * down) : ceil(bottom * down), floor(left * across) : ceil(right * across)]
            for left, top, right, bottom in tiles
        )
        return np.array([part.any() for part in parts])


def check_tiles(settings: DataSettings, targets: type[Targets]) -> None:
    """Refuse tiles of images that are not files, or for a task that does not label whole images.

    Raises:
        SettingError: names ``data.tiles``, or ``data.good`` without tiles.
    """
    if settings.tiles is None:
        if settings.good is not None:
            raise SettingError("data.good", settings.good, "null without data.tiles=N")
        return
    if targets is not Labels:
        raise SettingError("data.tiles", settings.tiles, "null: only task=classification scores pictures by tiles")
    if settings.path is None and settings.hub is None:
        expected = f"null: data={settings.name} has no picture files (data.path=DIR names a folder of them)"
        raise SettingError("data.tiles", settings.tiles, expected)


def with_tiles(sources: SourceSplits, rows: Rows, settings: DataSettings) -> tuple[SourceSplits, Rows, list[str]]:
    """The tiles of the pictures of both splits, the rows of all tiles of each part's pictures, and lines for the
    screen.

    Args:
        sources: pictures, with groups.
        rows: their division.
        settings: ``tiles``, ``fit``, ``good``, ``channels`` and ``mask_classes`` are read.

    Raises:
        SettingError: there are classes, and none of them is known to be good.
        DataError: masks that cannot be read.
    """
    assert settings.tiles is not None
    name = good_class(settings, sources.class_names)
    good = None if name is None else sources.class_names.index(name)
    tiling = Tiling(settings.tiles, settings.fit, name)
    train = TiledSource(sources.train, tiling, settings.channels, good)
    test = None if sources.test is None else TiledSource(sources.test, tiling, settings.channels, good)
    notes = [_in_words(train, tiling)]
    if good is not None:
        notes.append(_marks_in_words(train.mark(rows.train, settings.mask_classes), name))
    tested = {"test": test.rows_of(rows.test)} if test is not None else {}
    trained = {part.name: train.rows_of(getattr(rows, part.name)) for part in fields(rows)}
    return replace(sources, train=train, test=test), Rows(**(trained | tested)), notes


def good_class(settings: DataSettings, class_names: tuple[str, ...]) -> str | None:
    """The name of the good class; None without classes.

    Raises:
        SettingError: ``data.good`` is not a class, or is needed.
    """
    good = settings.good
    if not class_names and good is None:
        return None
    if good is None:
        good = named_good(class_names)
    if good not in class_names:
        listed = f"the class without a defect, one of {', '.join(class_names)}" if class_names else "null: no classes"
        why = f" (data.tiles={settings.tiles} takes a picture's label from its tile that is least likely to be good)"
        raise SettingError("data.good", settings.good, listed + why)
    return good


def _in_words(train: TiledSource, tiling: Tiling) -> str:
    counts, sides = np.diff(train.firsts), [boxes[0][2:] for boxes in train.tiles]
    low, high = counts.min(), counts.max()
    each = f"{low}" if low == high else f"{low} to {high}"
    width, height = np.median(sides, axis=0).round().astype(int)
    labelled = f"; the tile least likely to be {tiling.good} gives a picture its label" if tiling.good else ""
    return (
        f"data.tiles={tiling.count}: a picture is cut into {each} tiles of {width} x {height} pixels (median), which "
        f"overlap by {OVERLAP}; {len(counts):,} pictures are {len(train):,} tiles{labelled}"
    )


def _marks_in_words(counts: tuple[int, int], good: str | None) -> str:
    unmarked, total = counts
    if total:
        return f"{unmarked:,} of {total:,} tiles of pictures with marks have none, and are {good}"
    return (
        f"no defects are marked, so every tile of a picture that is not {good} has its picture's label, although most "
        "show no defect: masks would help (see docs/inspection_line.md)"
    )
