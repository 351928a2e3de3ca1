"""Splits a data set into the parts that a recipe's levels learn from, and the validation and test parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multilevel.recipes.data.augment import Geometry
from multilevel.recipes.data.groups import with_groups
from multilevel.recipes.data.images import Images, MemoryImages, Source, SourceSplits, StreamedImages
from multilevel.recipes.data.pixel_range import EIGHT_BITS, PixelRange
from multilevel.recipes.data.raster import MAX_PIXELS
from multilevel.recipes.data.record import DataRecord, ImageRecord
from multilevel.recipes.data.rows import Rows, divide
from multilevel.recipes.data.set_range import about_narrow_range, choose_range
from multilevel.recipes.data.settings import MASK_SHARE, DataSettings
from multilevel.recipes.data.sources.choice import read_sources
from multilevel.recipes.data.sources.tiled import check_tiles, with_tiles
from multilevel.recipes.data.sources.unlabelled import with_unlabelled
from multilevel.recipes.data.strata import random_for
from multilevel.recipes.data.targets.base import Targets
from multilevel.recipes.data.targets.choice import TARGETS
from multilevel.recipes.data.tiles import Pictures, Tiling
from multilevel.solvers.errors import SettingError
from multilevel.solvers.registry import chosen

_STATISTICS_IMAGES = 10_000
_STATISTICS_BATCH = 500
LEVELS = 256  # of a pixel


@dataclass(frozen=True)
class Split:
    """A subset of a data set's images.

    Attributes:
        name: its name in messages (``finetune``).
        images: the data set.
        indices: int64 tensor ``[N]``, the part's images in the data set.
        target_set: the targets that a task learns; ``None``: the labels.
    """

    name: str
    images: Images
    indices: Tensor
    target_set: Targets | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """int64 tensor ``[N]``, -1 where an image has no label; of a tile the label that it is trained with."""
        return self.images.labels[self.indices]

    @property
    def pictures(self) -> Pictures:
        """The pictures that the images of this part are tiles of; without ``data.tiles``, the images themselves."""
        source, indices = self.images.source, self.indices.numpy()
        if source.whole is source:
            return Pictures(np.arange(len(self)), indices, self.labels.numpy())
        of_each = np.array([source.picture(row) for row in indices.tolist()], dtype=np.int64)
        rows, numbers = np.unique(of_each, return_inverse=True)
        return Pictures(numbers, rows, source.whole.labels.numpy()[rows], source.good)

    @property
    def groups(self) -> Tensor:
        """int64 tensor ``[N]``; images with equal numbers belong together, see ``Source``."""
        return self.images.groups[self.indices]

    def pixels(self, positions: Tensor) -> Tensor:
        """uint8 tensor ``[B, C, H, W]`` of the images at ``positions`` (int64 ``[B]``) of this part.

        Raises:
            DataError: a broken image, by its name.
        """
        return self.images.pixels(self.indices[positions])

    def targets(self, positions: Tensor, geometry: Geometry | None = None) -> Tensor:
        """The targets of the images at ``positions`` (int64 ``[B]``), see ``Task.targets``.

        Args:
            positions: positions in this part.
            geometry: the transformation of the images, applied to masks and boxes too.

        Raises:
            DataError: a broken mask, or a box outside its image, by its name.
        """
        indices = self.indices[positions]
        return self.images.labels[indices] if self.target_set is None else self.target_set.of(indices, geometry)


@dataclass(frozen=True)
class ImageData:
    """A data set and its parts.

    ``finetune`` and ``mask`` are disjoint and together form ``train``; ``pretrain`` is ``finetune`` and the unlabelled
    training images. ``validation`` and ``test`` share no image with these parts or with each other, and are decoded
    only on request. Without labels there is only ``pretrain``: the other parts are empty and ``labelled`` is false.

    Attributes:
        class_names: the classes, by label; empty without labels.
        signal_patches: bool tensor ``[L]``, the patches of ``data.patch_size`` that show the class, where known.
        target_names: the classes of the task's targets, by number (for masks starting with the background).
        target_counts: number of each in ``train``: images, pixels of masks, or boxes.
        mean, std: float32 tensors ``[C]`` of the pretraining images, where white is 1.
        tiling: how the images were cut out of pictures; ``None`` without ``data.tiles``.
        pixel_range: the values that are black and white in images of more than 8 bits.
        max_pixels: the largest number of pixels of an image file.
        notes: lines about the division for the screen.
    """

    pretrain: Split
    finetune: Split
    mask: Split
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    target_names: tuple[str, ...]
    target_counts: tuple[int, ...]
    channels: int
    image_size: int
    fit: str
    mean: Tensor
    std: Tensor
    labelled: bool
    signal_patches: Tensor | None = None
    tiling: Tiling | None = None
    pixel_range: PixelRange = EIGHT_BITS
    max_pixels: int = MAX_PIXELS
    notes: tuple[str, ...] = ()

    def record(self) -> DataRecord:
        """The contents of ``data.json``, with which ``data.division`` divides the same images in the same way."""
        parts = {name: getattr(self, name) for name in ("pretrain", "finetune", "mask", "validation", "test")}
        own_test = self.test.images.source is not self.pretrain.images.source

        def record_of(*names: str) -> ImageRecord:
            source = parts[names[0]].images.source.whole
            return ImageRecord.of(source, {name: torch.from_numpy(parts[name].pictures.rows) for name in names})

        return DataRecord(
            class_names=list(self.class_names),
            target_names=list(self.target_names),
            mean=self.mean.tolist(),
            std=self.std.tolist(),
            train=record_of(*(name for name in parts if not (own_test and name == "test"))),
            test=record_of("test") if own_test else None,
            pixel_range=self.pixel_range.to_store(),
        )

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images to mean 0 and deviation 1 in every channel.

        Args:
            images: uint8 tensor ``[B, C, H, W]`` on any device, or a floating-point tensor on the same scale of 0 to
                255.

        Returns:
            float32 tensor ``[B, C, H, W]`` on the same device.
        """
        mean = self.mean.to(images.device)[:, None, None]
        std = self.std.to(images.device)[:, None, None]
        return (images.float() / 255 - mean) / std


def load_data(settings: DataSettings, allow_no_mask: bool = False, targets: str = "labels") -> ImageData:
    """Read and split a data set, and decode its training images if they fit in memory.

    The split depends only on the data set and ``settings.split_seed``, or is that of ``settings.division``. Global
    random states do not change.

    Args:
        settings: name the data set and its splits.
        allow_no_mask: for a recipe without mask learning: accept ``mask_share`` 0, which is then the default.
        targets: the kind of the task's targets, one of ``TARGETS``. All parts except ``pretrain`` have them.

    Returns:
        The data set and its parts. Validation and test images are decoded only to compare them with training images, at
        32 x 32 pixels.

    Raises:
        SettingError: an unusable setting.
        DataError: no images, a broken image, only one class, a class with too few images, no such targets, or images
            that are not those of ``settings.division``.
    """
    settings.validate()
    if settings.mask_share is None:
        settings = replace(settings, mask_share=0.0 if allow_no_mask else MASK_SHARE)
    if settings.mask_share == 0 and not allow_no_mask:
        raise SettingError("data.mask_share", settings.mask_share, "a share above 0 for mask learning")
    kind = chosen("targets", TARGETS, targets)
    check_tiles(settings, kind)
    sources = read_sources(settings, kind)
    if settings.unlabelled is not None:
        sources = with_unlabelled(sources, settings.unlabelled)
    for source in filter(None, (sources.train, sources.test)):
        source.limit_pixels(settings.max_pixels)
    kind.check(sources, settings)
    sources = kind.label(sources, settings)
    record = DataRecord.read(Path(settings.division)) if settings.division else None
    pixel_range, lines = EIGHT_BITS, list[str]()
    if record is not None and settings.pixel_range is None:
        pixel_range = PixelRange.stored(record.pixel_range)
    elif settings.path or settings.hub or settings.unlabelled:
        pixel_range, lines = choose_range(sources, settings)
    for source in filter(None, (sources.train, sources.test)):
        source.pixel_range = pixel_range
    if record is None:
        sources, notes = with_groups(sources, settings)
        notes = (*sources.notes, *lines, *notes)
        rows = divide(sources, settings)
    else:
        sources, rows = record.match(sources, settings)
        notes = ()
    if settings.tiles is not None:
        sources, rows, lines = with_tiles(sources, rows, settings)
        notes = (*notes, *lines)
    opened = partial(open_images, rows, settings)
    images, test_images = opened(sources, settings.channels)
    images.prepare(torch.from_numpy(np.union1d(rows.pretrain, rows.train)))
    learned, test_learned = kind.open(sources, settings, opened)
    counts = learned.count(torch.from_numpy(rows.train))
    target_names = kind.class_names(sources, settings, counts) if record is None else tuple(record.target_names)

    def part(name: str, of: Images, indices: np.ndarray, target_set: Targets | None = None) -> Split:
        return Split(name, of, torch.from_numpy(indices), target_set)

    pretrain = part("pretrain", images, rows.pretrain)
    if record is None:
        counts_of_levels = pixel_counts(pretrain, settings.split_seed)
        mean, std = pixel_statistics(counts_of_levels)
        notes = (*notes, *about_narrow_range(counts_of_levels))
    else:
        mean, std = torch.tensor(record.mean), torch.tensor(record.std)
    return ImageData(
        pretrain=pretrain,
        finetune=part("finetune", images, rows.finetune, learned),
        mask=part("mask", images, rows.mask, learned),
        train=part("train", images, rows.train, learned),
        validation=part("validation", images, rows.validation, learned),
        test=part("test", test_images, rows.test, test_learned),
        class_names=sources.class_names,
        target_names=target_names,
        target_counts=tuple(F.pad(counts, (0, len(target_names) - len(counts))).tolist()),
        channels=settings.channels,
        image_size=settings.image_size,
        fit=settings.fit,
        mean=mean,
        std=std,
        labelled=bool(sources.class_names),
        signal_patches=sources.signal_patches,
        tiling=getattr(sources.train, "tiling", None),
        pixel_range=pixel_range,
        max_pixels=settings.max_pixels,
        notes=notes,
    )


def open_images(rows: Rows, settings: DataSettings, sources: SourceSplits, channels: int) -> tuple[Images, Images]:
    """The training and test images, in memory if both fit; the same object twice if the test part is split off the
    training part."""
    training = np.union1d(np.union1d(rows.pretrain, rows.train), rows.validation)
    gib = (len(training) + len(rows.test)) * channels * settings.image_size**2 / 2**30
    in_memory = gib <= settings.memory_gib

    def opened(source: Source, used: np.ndarray) -> Images:
        if in_memory:
            return MemoryImages(source, settings.image_size, channels, torch.from_numpy(used), settings.fit)
        return StreamedImages(source, settings.image_size, channels, settings.fit)

    if sources.test is None:
        images = opened(sources.train, np.union1d(training, rows.test))
        return images, images
    return opened(sources.train, training), opened(sources.test, rows.test)


def pixel_counts(part: Split, split_seed: int) -> Tensor:
    """The number of pixels of each level in each channel, of at most 10,000 images drawn from a part.

    Returns:
        int64 tensor ``[C, 256]``.
    """
    positions = torch.arange(len(part))
    if len(part) > _STATISTICS_IMAGES:
        drawn = random_for(split_seed, "statistics").permutation(len(part))[:_STATISTICS_IMAGES]
        positions = torch.from_numpy(np.sort(drawn))
    counts = torch.zeros(part.images.channels, LEVELS, dtype=torch.int64)
    for batch in positions.split(_STATISTICS_BATCH):
        for channel, pixels in enumerate(part.pixels(batch).transpose(0, 1).flatten(1)):
            counts[channel] += torch.bincount(pixels, minlength=LEVELS)
    return counts


def pixel_statistics(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel.

    Args:
        counts: int64 ``[C, 256]``, see ``pixel_counts``.

    Returns:
        Two float32 tensors ``[C]``, where white is 1; a constant channel gets deviation 1.

    >>> pixel_statistics(torch.eye(256, dtype=torch.int64)[[255]])
    (tensor([1.]), tensor([1.]))
    """
    levels = torch.arange(LEVELS)
    count = counts.sum(1).double()  # sums of integers have no rounding
    mean = (counts * levels).sum(1).double() / count
    deviation = ((counts * levels.square()).sum(1).double() / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(deviation > 0, deviation, 255.0)
    return (mean / 255).float(), (std / 255).float()
