"""Describes the images that were read, for the screen before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

import numpy as np
from PIL import Image

from multilevel.recipes.data.images import Source
from multilevel.recipes.data.pictures import to_square, upright
from multilevel.recipes.data.sources.unlabelled import folders_of
from multilevel.recipes.data.splits import ImageData
from multilevel.recipes.data.strata import random_for

LOOKED_AT = 500  # pictures and masks, drawn at random, whose sizes are reported
SHOWN_CLASSES = 20
NEGLIGIBLE = 0.05  # share of a picture that a crop may leave out without a word
MARKED = 127  # a mask's pixels above this grey value are marked


def overview(data: ImageData) -> list[str]:
    """Pictures, classes and parts, files that were left out, and what the chosen size and fit leave of the pictures."""
    source = data.pretrain.images.source.whole
    rows = np.union1d(data.pretrain.pictures.rows, data.train.pictures.rows)
    rows = random_for(0, "overview").permutation(rows)[:LOOKED_AT]
    lines = [_classes(data), _parts(data)]
    if folders := folders_of(list(source.names or ())):
        lines.append(f"folders of data.unlabelled: {_counted(dict(sorted(folders.items())))}")
    if source.left_out:
        lines.append(f"left out, since they are not images: {_counted(source.left_out)}")
    if source.nested:
        names = ", ".join(f"{name} (with {', '.join(folders[:3])})" for name, folders in source.nested.items())
        lines.append(f"classes with folders inside, whose images are all of the class: {names}")
    if source.names is not None:
        lines += _left_by_crop(source, data, rows)
    if source.has_masks:
        lines += _left_of_defects(source, data, rows)
    return lines


def _classes(data: ImageData) -> str:
    if not data.labelled:
        return f"images: {_count(data, 'pretrain'):,} without labels"
    counts = sum(
        np.bincount(_labels(data, part), minlength=len(data.class_names)) for part in ("train", "validation", "test")
    )
    by_class = dict(zip(data.class_names, np.asarray(counts).tolist(), strict=True))
    shown = _counted(dict(sorted(by_class.items(), key=lambda item: -item[1])[:SHOWN_CLASSES]))
    more = f" and {len(by_class) - SHOWN_CLASSES} more" if len(by_class) > SHOWN_CLASSES else ""
    unlabelled = _count(data, "pretrain") - _count(data, "finetune")
    tail = f"; {unlabelled:,} without a label" if unlabelled else ""
    return f"images: {int(np.sum(counts)):,} of {len(by_class)} classes: {shown}{more}{tail}"


def _labels(data: ImageData, part: str) -> np.ndarray:
    return getattr(data, part).pictures.labels


def _count(data: ImageData, part: str) -> int:
    return len(getattr(data, part).pictures)


def _parts(data: ImageData) -> str:
    counts = {name: _count(data, name) for name in ("pretrain", "finetune", "mask", "validation", "test")}
    return f"parts: {_counted({name: count for name, count in counts.items() if count})}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _left_by_crop(source: Source, data: ImageData, rows: np.ndarray) -> Iterator[str]:
    if data.fit != "crop" or data.tiling is not None:
        return
    lost = []
    for row in rows.tolist():
        with source.open(row) as picture:
            lost.append(1 - min(picture.size) / max(picture.size))
    if lost and median(lost) > NEGLIGIBLE:
        yield (
            f"data.fit=crop leaves out {median(lost):.0%} of a picture (median; at most {max(lost):.0%}); "
            "data.fit=stretch keeps it all, distorted"
        )


def _left_of_defects(source: Source, data: ImageData, rows: np.ndarray) -> Iterator[str]:
    """How many pixels of the marks are left at the size of the model."""
    pixels, gone = [], 0
    for row in rows.tolist():
        mask = source.open_mask(row)
        if mask is None:
            continue
        marked = Image.fromarray((np.asarray(upright(mask).convert("L")) > MARKED).astype(np.float32), "F")
        if np.asarray(marked).any():
            parts = [marked] if data.tiling is None else data.tiling.cut(marked)
            squares = (to_square(part, data.image_size, data.fit, Image.Resampling.BOX) for part in parts)
            pixels.append(max(float(np.asarray(square).sum()) for square in squares))
            gone += pixels[-1] == 0
    if pixels:
        size = f"{data.image_size} x {data.image_size}"
        size += ", in the tile that shows most of it" if data.tiling is not None else ""
        lost = f"; {gone} of {len(pixels)} are outside the crop" if gone else ""
        yield (
            f"a marked defect keeps {median(pixels):.0f} pixels at {size} (median; "
            f"a tenth keep at most {np.quantile(pixels, 0.1):.1f}){lost}"
        )
