"""Image sets: where they are read from; pixels cached in memory or decoded on demand."""

from __future__ import annotations

import os
import sys
import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from multilevel.recipes.data.pictures import to_pixels
from multilevel.solvers.errors import DataError

_LARGEST_TASK = 64  # a small image takes 0.1 ms, about as long as a task costs
_MOST_WORKERS = 32
_SMALL_PICTURE = 96 * 96  # pixels; smaller images spend their time in Python, where threads only slow things down


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
    """

    labels: Tensor
    multilabels: Tensor | None = None
    boxes: list[np.ndarray] | None = None
    has_masks: bool = False
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

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
    """

    train: Source
    test: Source | None
    class_names: tuple[str, ...]
    target_names: tuple[str, ...] = ()
    signal_patches: Tensor | None = None


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

    def _decode(self, rows: list[int], into: np.ndarray, places: list[int], progress: bool) -> None:
        """Decode ``rows`` in threads into ``into``, a uint8 array ``[*, C, H, W]``."""
        workers = worker_count() if rows and self._gains_from_threads(rows[0]) else 1
        task_size = max(1, min(_LARGEST_TASK, len(rows) // (4 * workers)))

        def decode_some(start: int) -> int:
            stop = min(start + task_size, len(rows))
            for row, position in zip(rows[start:stop], places[start:stop], strict=True):
                into[position] = self._decode_one(row)
            return stop - start

        Image.init()  # Pillow looks for its formats on first use, which is not safe in threads
        starts = range(0, len(rows), task_size)
        silent = not (progress and sys.stderr.isatty())
        with (
            tqdm(total=len(rows), desc="decoding", leave=False, file=sys.stderr, disable=silent) as bar,
            ThreadPoolExecutor(workers, "decode") as pool,
        ):
            for count in pool.map(decode_some, starts):  # a failure cancels the tasks that have not started
                bar.update(count)

    def _gains_from_threads(self, row: int) -> bool:
        """Whether decoding mostly releases the interpreter lock, judged by the size of one image."""
        try:
            with self.source.open(row) as picture:
                return picture.width * picture.height > _SMALL_PICTURE
        except Exception:  # broken: decoding will report it
            return True

    def _decode_one(self, row: int) -> np.ndarray:
        try:
            with self.source.open(row) as picture:
                return to_pixels(picture, self.image_size, self.channels, self.fit)
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
                self._decode(missing.tolist(), self._pixels.numpy(), places, progress=True)
                self.decoded[missing] = True


class StreamedImages(Images):
    """Images that are decoded at every request, for data sets larger than memory."""

    def pixels(self, indices: Tensor) -> Tensor:
        pixels = self._empty(len(indices))
        self._decode(indices.tolist(), pixels.numpy(), list(range(len(indices))), progress=False)
        return pixels

    def prepare(self, indices: Tensor) -> None:
        """Do nothing, since nothing is cached."""


def unreadable(where: str, error: Exception) -> DataError:
    """The error for a file or row that cannot be read."""
    cause = " ".join(str(error).split())
    return DataError(f"{where} cannot be read as an image ({type(error).__name__}: {cause}); remove or replace it")


def worker_count() -> int:
    """The number of decoding threads: the processors available to this process."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_WORKERS)
