"""Image sets: where they are read from; pixels cached in memory or decoded on demand."""

from __future__ import annotations

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from multilevel.recipes.data.pictures import to_pixels
from multilevel.recipes.data.pixel_range import PixelRange
from multilevel.recipes.data.raster import MAX_PIXELS, bounded
from multilevel.solvers.errors import DataError, SettingError

_LARGEST_TASK = 64  # a small image takes 0.1 ms, about as long as a task costs
_MOST_WORKERS = 32
_SMALL_PICTURE = 96 * 96  # pixels; smaller images spend their time in Python, where threads only slow things down
_NAMED = 5  # unreadable images named in an error


CHANGED = "has changed since the run; restore it, or set data.changed=accept"


class Source(ABC):
    """Images before decoding, one per row.

    Attributes:
        labels: int64 tensor ``[N]``, -1 where an image has no label.
        multilabels: float32 tensor ``[N, classes]`` of 0 and 1, or ``None``.
        boxes: for each image a float array ``[K, 5]`` of left, top, right, bottom, in pixels of the picture, and class,
            or ``None``.
        has_masks: whether ``open_mask`` may be called.
        groups: int64 tensor ``[N]``; images with equal numbers show one part, lot or date, and stay in one part of the
            division. ``None``: every image is a group.
        names: the images' file names below ``data.path``; ``None``: images are named by their row.
        digests: of the contents of each image that has been read, by row.
        expected: recorded digests, by row; reading an image with another digest raises.
        good: number of the good class if the images are tiles; ``None`` otherwise, or without classes.
        left_out: number of files of each kind that are not images.
        nested: the folders with images inside the folder of a class, by class.
        pixel_range: of images of more than 8 bits, chosen for the whole set.
        max_pixels: the largest number of pixels of a picture.
    """

    labels: Tensor
    multilabels: Tensor | None = None
    boxes: list[np.ndarray] | None = None
    has_masks: bool = False
    groups: Tensor | None = None
    names: Sequence[str] | None = None
    digests: dict[int, str]
    expected: Mapping[int, str] = {}
    good: int | None = None
    left_out: Mapping[str, int] = {}
    nested: Mapping[str, Sequence[str]] = {}
    pixel_range: PixelRange | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def whole(self) -> Source:
        """The source of the pictures that the images are tiles of; this one, unless they are."""
        return self

    def picture(self, row: int) -> int:
        """The row in ``whole`` of an image's picture."""
        return row

    def limit_pixels(self, count: int) -> None:
        """Refuse pictures of more than ``count`` pixels."""
        self.max_pixels = count

    def __len__(self) -> int:
        return len(self.labels)

    def image_name(self, row: int) -> str:
        """The file name of an image below ``data.path``, or its row."""
        return str(row) if self.names is None else self.names[row]

    def group_keys(self, setting: str) -> list[str | None]:
        """The group of each image by ``data.group``; ``None`` for an image of its own group.

        Raises:
            SettingError: neither a pattern that matches file names, nor a name that this source knows.
        """
        raise SettingError("data.group", setting, "null: these images have neither file names nor columns")

    def stamp(self, row: int) -> int:
        """A number that changes with an image's file size and its targets other than the label; nothing is decoded."""
        return 0

    def contents(self, row: int) -> bytes:
        """Everything that an image and its mask are decoded from."""
        return np.asarray(self.open(row)).tobytes()

    def check_contents(self, row: int) -> None:
        """Keep the digest of an image's contents.

        Raises:
            DataError: it differs from the recorded one.
        """
        if row not in self.digests:
            digest = blake2b(self.contents(row), digest_size=8).hexdigest()
            if self.expected.get(row, digest) != digest:
                raise DataError(f"{self.describe_row(row)} {CHANGED}")
            self.digests[row] = digest

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """Open one image; any error of a broken image is reported with ``describe_row(row)``."""

    @abstractmethod
    def describe_row(self, row: int) -> str:
        """Name the file or the table row of an image, for messages."""

    def open_mask(self, row: int) -> Image.Image | None:
        """Open the mask of an image; ``None`` if nothing is marked."""
        raise NotImplementedError

    def describe_mask(self, row: int) -> str:
        """Like ``describe_row``, for its mask."""
        return f"the mask in {self.describe_row(row)}"


@dataclass(frozen=True)
class SourceSplits:
    """A data set: training images, its own test images if it has any, and the names of its classes.

    Attributes:
        class_names: names of the classes, by label; images are split by these classes.
        target_names: names, by number, of the classes of ``multilabels`` or ``boxes``, if any.
        signal_patches: bool ``[L]``, the patches of ``data.patch_size`` that show the class, if known.
        notes: lines for the screen about how the images were found.
    """

    train: Source
    test: Source | None
    class_names: tuple[str, ...]
    target_names: tuple[str, ...] = ()
    signal_patches: Tensor | None = None
    notes: tuple[str, ...] = ()


class Images(ABC):
    """Images of equal size.

    Args:
        source: source of the images.
        image_size: height and width.
        channels: 1 or 3.
        fit: see ``to_square``.

    Attributes:
        labels: int64 tensor ``[N]``, -1 where an image has no label.
        groups: int64 tensor ``[N]``; images with equal numbers belong together, see ``Source``.
    """

    def __init__(self, source: Source, image_size: int, channels: int, fit: str = "crop") -> None:
        self.source = source
        if not hasattr(source, "digests"):
            source.digests = {}
        self.fit = fit
        self.image_size = image_size
        self.channels = channels
        self.labels = source.labels
        self.groups = torch.arange(len(source)) if source.groups is None else source.groups

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def pixels(self, indices: Tensor) -> Tensor:
        """Decoded images.

        Args:
            indices: int64 tensor ``[B]`` on the CPU.

        Returns:
            uint8 tensor ``[B, channels, image_size, image_size]``.

        Raises:
            DataError: a broken image, by its name.
        """

    @abstractmethod
    def prepare(self, indices: Tensor) -> None:
        """Decode these images (int64 ``[B]``) now if decoded images are kept.

        Raises:
            DataError: a broken image, by its name.
        """

    def _empty(self, count: int) -> Tensor:
        return torch.empty((count, self.channels, self.image_size, self.image_size), dtype=torch.uint8)

    def _decode(self, rows: list[int], into: np.ndarray, places: list[int], progress: bool) -> dict[int, DataError]:
        """Decode ``rows`` in threads into ``into``, a uint8 array ``[*, C, H, W]``. Returns errors by row."""
        workers = worker_count() if rows and self._gains_from_threads(rows[0]) else 1
        task_size = max(1, min(_LARGEST_TASK, len(rows) // (4 * workers)))

        problems: dict[int, DataError] = {}

        def decode_some(start: int, stop: int) -> int:
            for row, position in zip(rows[start:stop], places[start:stop], strict=True):
                try:
                    into[position] = self._decode_one(row)
                except DataError as error:
                    problems[row] = error
            return stop - start

        Image.init()  # Pillow looks for its formats on first use, which is not safe in threads
        starts = self._starts(rows, task_size)
        stops = [*starts[1:], len(rows)]
        silent = not (progress and sys.stderr.isatty())
        with (
            tqdm(total=len(rows), desc="decoding", leave=False, file=sys.stderr, disable=silent) as bar,
            ThreadPoolExecutor(workers, "decode") as pool,
        ):
            for count in pool.map(decode_some, starts, stops):  # a failure cancels the tasks that have not started
                bar.update(count)
        return problems

    def _starts(self, rows: list[int], task_size: int) -> list[int]:
        """Where tasks of about this size begin among ``rows``; tiles of one picture that follow each other are in one
        task, which decodes the picture once."""
        starts: list[int] = []
        picture = self.source.picture
        for start in range(0, len(rows), task_size):
            while 0 < start < len(rows) and picture(rows[start]) == picture(rows[start - 1]):
                start += 1
            if start < len(rows) and start not in starts[-1:]:
                starts.append(start)
        return starts

    def _gains_from_threads(self, row: int) -> bool:
        """Whether decoding mostly releases the interpreter lock, judged by the size of one image."""
        try:
            with self.source.open(row) as picture:
                return picture.width * picture.height > _SMALL_PICTURE
        except Exception:  # broken: decoding will report it
            return True

    def _decode_one(self, row: int) -> np.ndarray:
        try:
            self.source.check_contents(row)
            with bounded(self.source.open(row)) as picture:
                return to_pixels(picture, self.image_size, self.channels, self.fit, self.source.pixel_range)
        except DataError:
            raise
        except Exception as error:  # Pillow's formats raise errors of many kinds for broken files
            raise unreadable(self.source.describe_row(row), error) from error


class MemoryImages(Images):
    """Images that are decoded on first request and kept in memory as uint8.

    Args:
        rows: int64 tensor, the only indices that will be requested; memory is allocated only for these.

    Attributes:
        decoded: bool tensor ``[N]``, which images have been decoded so far.
    """

    def __init__(self, source: Source, image_size: int, channels: int, rows: Tensor, fit: str = "crop") -> None:
        super().__init__(source, image_size, channels, fit)
        self.decoded = torch.zeros(len(source), dtype=torch.bool)
        self._pixels = self._empty(len(rows))
        self._places = torch.full((len(source),), -1, dtype=torch.int64)
        self._places[rows] = torch.arange(len(rows))
        self._lock = threading.Lock()  # loaders call this from their own threads

    def pixels(self, indices: Tensor) -> Tensor:
        self.prepare(indices)
        return self._pixels[self._places[indices]]

    def prepare(self, indices: Tensor) -> None:
        with self._lock:
            missing = indices[~self.decoded[indices]].unique()
            if len(missing):
                places = self._places[missing].tolist()
                check_readable(self._decode(missing.tolist(), self._pixels.numpy(), places, progress=True))
                self.decoded[missing] = True


class StreamedImages(Images):
    """Images that are decoded at every request, for data sets larger than memory."""

    def pixels(self, indices: Tensor) -> Tensor:
        pixels = self._empty(len(indices))
        check_readable(self._decode(indices.tolist(), pixels.numpy(), list(range(len(indices))), progress=False))
        return pixels

    def prepare(self, indices: Tensor) -> None:
        """Do nothing, since nothing is cached."""

    def readable(self) -> tuple[Tensor, dict[int, DataError]]:
        """All images uint8 ``[N, C, H, W]``, and the errors of unreadable ones, by row; these are black."""
        pixels = self._empty(len(self)).zero_()
        return pixels, self._decode(list(range(len(self))), pixels.numpy(), list(range(len(self))), progress=True)


def unreadable(where: str, error: Exception) -> DataError:
    """The error for a file or row that cannot be read."""
    cause = " ".join(str(error).split())
    return DataError(f"{where} cannot be read as an image ({type(error).__name__}: {cause}); remove or replace it")


def check_readable(problems: Mapping[int, DataError]) -> None:
    """Raise one DataError for all images that cannot be read, if there are any.

    Args:
        problems: the error of each, by row.
    """
    errors = list({str(problems[row]): problems[row] for row in sorted(problems)}.values())  # tiles share a picture
    if len(errors) == 1:
        raise errors[0]
    if errors:
        more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        raise DataError(f"{len(errors)} images: {'; '.join(map(str, errors[:_NAMED]))}{more}")


def worker_count() -> int:
    """The number of decoding threads: the processors available to this process."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_WORKERS)
