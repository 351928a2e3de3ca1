"""Serves batches of a part of a data set: shuffled, augmented, normalised, and prepared ahead in one thread."""

from __future__ import annotations

import copy
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multilevel.recipes.data.augment import draw_geometry
from multilevel.recipes.data.splits import Split
from multilevel.solvers.errors import DataError, SettingError

Batch = tuple[Tensor, Tensor]

_AHEAD = 2


@dataclass(eq=False)
class ImageLoader:
    """Batches of one part; every ``iter()`` is one epoch.

    ``iter()`` immediately draws from torch's global generator: a permutation (with ``shuffle``), then one seed (with
    ``shuffle`` or augmentation). Nothing else touches a global generator: batch ``k`` is augmented from a separate
    generator, seeded from that seed and ``k``.

    Args:
        part: the images.
        normalize: maps ``[B, C, H, W]`` in 0 to 255, uint8 or float32, to normalised float32.
        batch_size: images in a batch.
        flip: mirror images at random.
        crop_scale: smallest share of an image's area that a random crop keeps; 1.0 crops nothing.
        drop_last: leave out the last images if they do not fill a batch.
        shuffle: draw a new order every epoch; otherwise keep the part's order.

    Raises:
        DataError: no images, or fewer images than a batch with ``drop_last``.
    """

    part: Split
    normalize: Callable[[Tensor], Tensor]
    batch_size: int
    flip: bool = False
    crop_scale: float = 1.0
    drop_last: bool = True
    shuffle: bool = True

    def __post_init__(self) -> None:
        smallest = self.batch_size if self.drop_last else 1
        if len(self.part) < smallest:
            raise DataError(
                f"the part {self.part.name!r} has {len(self.part)} images, fewer than data.batch_size="
                f"{self.batch_size}; expected a smaller batch, more images, or other values of data.limit and "
                "data.mask_share"
            )
        self.share = slice(0, self.batch_size)

    def batch_share(self, rank: int, count: int) -> ImageLoader:
        """A loader of rank ``rank``'s share of each batch among ``count`` ranks, shuffled and augmented as in the whole
        batch; other images are not read.

        Raises:
            SettingError: the batch size is not a multiple of ``count``.
            ValueError: the last batch may be smaller.
        """
        if not self.drop_last:
            raise ValueError("drop_last: got False; ranks can only share full batches")
        size, remainder = divmod(self.batch_size, count)
        if remainder:
            raise SettingError("data.batch_size", self.batch_size, f"a multiple of the number of ranks, {count}")
        loader = copy.copy(self)
        loader.share = slice(rank * size, (rank + 1) * size)
        return loader

    def __len__(self) -> int:
        """Batches in an epoch."""
        count = len(self.part) / self.batch_size
        return math.floor(count) if self.drop_last else math.ceil(count)

    @property
    def images_per_epoch(self) -> int:
        """Images in an epoch."""
        return len(self) * self.batch_size if self.drop_last else len(self.part)

    def __iter__(self) -> Iterator[Batch]:
        """One epoch of ``(images float32 [B, C, H, W], targets [B, ...])``; for targets see ``Split``."""
        return self.iterate_from(0)

    def iterate_from(self, start: int) -> Iterator[Batch]:
        """The epoch of ``iter()`` from batch ``start`` on; earlier batches are not computed.

        The draws from torch's global generator are the same as in ``iter()``, made before this returns.

        Raises:
            ValueError: ``start`` is not a batch of the epoch (its end, ``len(self)``, is allowed).
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start: got {start}; an epoch has {len(self)} batches")
        order = torch.randperm(len(self.part), device="cpu") if self.shuffle else torch.arange(len(self.part))
        seed = 0
        if self.shuffle or self.flip or self.crop_scale < 1:
            seed = int(torch.randint(2**62, (), device="cpu"))
        return Epoch(lambda number: self.batch(order, seed, number), start, len(self))

    def batch(self, order: Tensor, seed: int, number: int) -> Batch:
        """Batch ``number`` of the epoch with this order of positions (int64 ``[N]``) and augmentation seed.

        Raises:
            DataError: a broken image or mask, by its name.
        """
        positions = order[number * self.batch_size : (number + 1) * self.batch_size]
        generator = torch.Generator().manual_seed(mixed_seed(seed, number))
        with torch.no_grad():
            geometry = draw_geometry(len(positions), self.part.images.image_size, self.flip, self.crop_scale, generator)
            geometry, positions = geometry[self.share], positions[self.share]
            pixels = self.part.pixels(positions)
            return self.normalize(geometry.images(pixels)), self.part.targets(positions, geometry)


class Epoch(Iterator[Batch]):
    """Yields batches ``start`` to ``stop``, computed in one thread that ends when the iterator is garbage-collected.

    Args:
        compute: maps a number to its batch; called in order in the thread. It must not reference this object.
        start: the first number.
        stop: the number after the last.
    """

    def __init__(self, compute: Callable[[int], Batch], start: int, stop: int) -> None:
        self._compute = compute
        self._numbers = iter(range(start, stop))
        self._ahead: deque[Future[Batch]] = deque()
        self._thread = ThreadPoolExecutor(1, "batches")
        # Without waiting, since the garbage collector may call this from the thread itself.
        self._close = weakref.finalize(self, self._thread.shutdown, wait=False, cancel_futures=True)
        for _ in range(_AHEAD):
            self._order_next()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StopIteration: after the last batch or an error.
            Exception: whatever computing the batch raised.
        """
        if not self._ahead:
            self._close()
            raise StopIteration
        try:
            batch = self._ahead.popleft().result()
        except BaseException:
            self._ahead.clear()
            self._close()
            raise
        self._order_next()
        return batch

    def _order_next(self) -> None:
        number = next(self._numbers, None)
        if number is not None:
            self._ahead.append(self._thread.submit(self._compute, number))


def mixed_seed(seed: int, number: int) -> int:
    """A seed for one batch, unrelated to the seeds of the next batch and the next epoch."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
