"""Reads mask images as class numbers, at the size of the picture or of its square."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from multilevel.levels.tasks.losses import IGNORED
from multilevel.recipes.data.images import Source, SourceSplits
from multilevel.recipes.data.pictures import stored_orientation, to_square, turned, upright
from multilevel.recipes.data.pixel_range import kind_of, raw_values, white_is_zero
from multilevel.recipes.data.settings import DataSettings

_HALF_OF_WHITE = 127


def class_numbers(mask: Image.Image, mask_classes: str, label: int) -> np.ndarray:
    """Convert a mask to class numbers: uint8 array ``[H, W]``, 0 for the background, 255 for pixels to ignore.

    Args:
        mask: a picture that Pillow has opened.
        mask_classes: ``binary``: 1 above half of white; ``labels``: 1 + ``label`` above half of white; ``values``: the
            pixel's value (or palette index).
        label: label of the image.

    Raises:
        ValueError: with ``values``, the mask has colours or values beyond 255.
    """
    if mask_classes == "values":
        values = np.asarray(mask)
        if values.ndim != 2:
            raise ValueError(f"its pixels are colours ({mask.mode}), not class numbers")
        if values.min() < 0 or values.max() > IGNORED:
            raise ValueError(f"its values are {values.min()} to {values.max()}; expected 0 to {IGNORED}")
        return values.astype(np.uint8)
    return _marked(mask) * np.uint8(1 + label if mask_classes == "labels" else 1)


def _marked(mask: Image.Image) -> np.ndarray:
    """Which pixels are above half of white: bool ``[H, W]``. White is that of 8 bits, or with larger values of 16; in
    floating point 1, or with larger values 255."""
    kind = kind_of(mask)
    if kind is None:
        return np.asarray(mask.convert("L")) > _HALF_OF_WHITE
    values = np.nan_to_num(raw_values(mask))
    whites = (255, 65535) if kind == "integers" else (1, 255)
    half = whites[int(values.max() > whites[0])] / 2
    return values < half if white_is_zero(mask) else values > half


def read_mask(source: Source, row: int, mask_classes: str) -> np.ndarray | None:
    """Read the mask of an image at its own size, uint8 ``[H, W]``; ``None`` if nothing is marked.

    Raises:
        Exception: whatever Pillow raises for a broken file.
        ValueError: the mask and its image differ in shape, or its values are not class numbers.
    """
    opened = source.open_mask(row)
    if opened is None:
        return None
    with opened, source.open(row) as picture:
        mask, (width, height) = _turned_with(opened, picture), upright(picture).size
        if abs(mask.width * height / mask.height - width) > max(1.0, width / mask.width):
            raise ValueError(f"it has {mask.width} x {mask.height} pixels and its image {width} x {height}")
        return class_numbers(mask, mask_classes, int(source.labels[row]))


def _turned_with(mask: Image.Image, picture: Image.Image) -> Image.Image:
    """The mask upright. Without an orientation tag it marks the stored pixels of its picture, and is turned with them,
    unless only the upright picture has its shape."""
    tag, (width, height) = stored_orientation(picture), upright(picture).size
    if stored_orientation(mask) != 1 or tag == 1:
        return upright(mask)
    as_stored = turned(mask, tag)
    fits = {made.size: abs(made.width * height - made.height * width) for made in (mask, as_stored)}
    return mask if fits[mask.size] < fits[as_stored.size] else as_stored


class MaskSource(Source):
    """The masks of a source as grey pictures of class numbers, resized to a square by nearest-neighbour interpolation.

    Args:
        source: the images, which have masks.
        image_size: height and width.
        mask_classes: see ``class_numbers``.
        fit: how images become squares.
    """

    def __init__(self, source: Source, image_size: int, mask_classes: str, fit: str = "crop") -> None:
        self.source = source
        self.image_size = image_size
        self.mask_classes = mask_classes
        self.fit = fit
        self.labels = source.labels

    def open(self, row: int) -> Image.Image:
        mask = read_mask(self.source, row, self.mask_classes)
        if mask is None:
            return Image.new("L", (self.image_size, self.image_size))
        return to_square(Image.fromarray(mask), self.image_size, self.fit, Image.Resampling.NEAREST)

    def describe_row(self, row: int) -> str:
        return self.source.describe_mask(row)

    def check_contents(self, row: int) -> None:
        """Nothing: the contents of an image include its mask."""


def mask_splits(sources: SourceSplits, settings: DataSettings) -> SourceSplits:
    """The masks of training and test images; reads ``image_size``, ``mask_classes`` and ``fit``."""
    train, test = (
        source and MaskSource(source, settings.image_size, settings.mask_classes, settings.fit)
        for source in (sources.train, sources.test)
    )
    assert train is not None
    return replace(sources, train=train, test=test)
