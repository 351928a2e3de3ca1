"""The classes of what a task learns, and a division of images that have no classes by what is marked in them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from multilevel.levels.tasks.losses import IGNORED
from multilevel.recipes.data.images import Source, SourceSplits, StreamedImages
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.targets.masks import MaskSource
from multilevel.solvers.errors import DataError, SettingError

MARKED = ("mask", "boxes")
_MARKS = ("without marks", "with marks")
_TOGETHER = 256  # masks that are decoded at once


def check_targets(kind: str, sources: SourceSplits, settings: DataSettings) -> None:
    """Refuse a set that lacks what a task learns.

    Args:
        kind: see ``Task.targets``.
        sources: the set.
        settings: of it.

    Raises:
        DataError: no masks, boxes or lists of labels.
        SettingError: ``mask_classes=labels`` without labels, or with more than a mask has numbers for.
    """
    train = sources.train
    if kind == "multilabels" and train.multilabels is None:
        raise DataError(f"data={settings.name} has no lists of labels, which the task learns: they come from a table")
    own_boxes = kind == "boxes" and train.boxes is not None
    if kind not in MARKED or own_boxes:
        return
    if not train.has_masks:
        raise DataError(
            f"data={settings.name} has no masks, which the task learns: expected masks/CLASS/NAME.png for "
            "CLASS/NAME.jpg, or NAME_mask.png beside NAME.jpg (in a table a column of images: data.mask_column)"
        )
    if settings.mask_classes == "labels" and not 2 <= len(sources.class_names) < IGNORED:
        expected = f"binary or values, where the images have no labels or more than {IGNORED - 1} classes"
        raise SettingError("data.mask_classes", settings.mask_classes, expected)


def divided_by_marks(kind: str, sources: SourceSplits, settings: DataSettings) -> SourceSplits:
    """Sources whose images of fewer than two classes are labelled by whether anything is marked in them.

    Labels are what parts of a set are cut in proportion to.

    Args:
        kind: see ``Task.targets``; labels of other tasks stay.
        sources: the set; its labels are replaced.
        settings: of it.
    """
    if kind not in MARKED or len(sources.class_names) > 1:
        return sources
    train, test = sources.train, sources.test
    labelled = train.labels >= 0 if sources.class_names else torch.ones(len(train), dtype=torch.bool)
    train.labels = torch.where(labelled, marked(kind, train, settings).long(), -1)
    if test is not None:  # nothing is cut from it: it is not read
        test.labels = torch.zeros(len(test), dtype=torch.int64)
    return replace(sources, class_names=_MARKS)


def marked(kind: str, source: Source, settings: DataSettings) -> Tensor:
    """In which images anything is marked: bool ``[N]``.

    Raises:
        DataError: a broken mask.
    """
    every = torch.arange(len(source))
    if kind == "boxes" and source.boxes is not None:
        return torch.tensor([len(boxes) > 0 for boxes in source.boxes])
    size = settings.image_size
    masks = StreamedImages(MaskSource(source, size, settings.mask_classes, settings.fit), size, 1)
    parts = tqdm(every.split(_TOGETHER), desc="reading masks", leave=False, disable=None)
    pixels = (masks.pixels(some).flatten(1) for some in parts)
    return torch.cat([((some > 0) & (some != IGNORED)).any(1) for some in pixels])


def name_classes(kind: str, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
    """The classes of what a task learns, by number.

    Args:
        kind: see ``Task.targets``.
        sources: the set.
        settings: of it.
        counts: int64, how often each class occurs in the training images.

    Raises:
        DataError: nothing is marked in any training image.
    """
    if kind == "labels":
        return sources.class_names
    if kind == "multilabels" or (kind == "boxes" and sources.train.boxes is not None):
        return sources.target_names
    first = 1 if kind == "mask" else 0  # masks have a background, boxes do not
    if not counts[first:].any():
        raise DataError(
            f"data={settings.name}: nothing is marked in the training masks with data.mask_classes="
            f"{settings.mask_classes} (binary and labels: what is above half of white; values: class numbers)"
        )
    background = ("background",) * first
    if settings.mask_classes == "binary":
        return (*background, "defect")
    if settings.mask_classes == "labels":
        return (*background, *sources.class_names)
    return (*background, *(str(number + 1 - first) for number in range(first, len(counts))))
