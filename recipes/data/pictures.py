"""Converts an image file of any mode and size to a square uint8 array."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

FITS = ("crop", "stretch")
_WHITE = (255, 255, 255, 255)
_SIXTEEN_BIT_STEP = 257  # 65535 / 255: the step that maps 16 bits onto 8, black on black and white on white


def to_pixels(picture: Image.Image, image_size: int, channels: int, fit: str = "crop") -> np.ndarray:
    """Convert a picture to ``channels`` colours and a square.

    Transparent parts become white, 16-bit grey is scaled to 8 bits, a camera's orientation tag is applied.

    Args:
        picture: any picture that Pillow has opened.
        image_size: height and width of the result.
        channels: 1 (grey) or 3 (RGB).
        fit: see ``to_square``.

    Returns:
        uint8 array ``[channels, image_size, image_size]``.

    Raises:
        Exception: whatever Pillow raises for a broken file; the caller knows the file's name.
    """
    picture = to_square(to_colours(upright(picture), channels), image_size, fit)
    array = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def upright(picture: Image.Image) -> Image.Image:
    """Rotate the picture as its orientation tag says; most files have none, which costs no time here."""
    return ImageOps.exif_transpose(picture) if "exif" in picture.info else picture


def to_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Convert the picture to mode ``L`` (one channel) or ``RGB`` (three)."""
    mode = "L" if channels == 1 else "RGB"
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = to_eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, _WHITE), picture)
    return picture.convert(mode)


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Convert a grey picture of 16 bits, 32 bits or floating point to mode ``L``.

    Integers are read as 16 bits; floating point as 0 to 1 if no value is larger, otherwise as 0 to 255.
    """
    values = np.asarray(picture).astype(np.float64)
    if picture.mode == "F":
        values = values * 255 if values.max() <= 1 else values
    else:
        values = values / _SIXTEEN_BIT_STEP
    return Image.fromarray(np.nan_to_num(values).round().clip(0, 255).astype(np.uint8))


def to_square(
    picture: Image.Image,
    image_size: int,
    fit: str = "crop",
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Resize the picture to a square (with antialiasing, except with nearest-neighbour interpolation).

    Args:
        picture: a picture of any size.
        image_size: pixels per side.
        fit: crop (the centre square of the picture) or stretch (the whole picture).
        resampling: the filter of the resizing.
    """
    size = (image_size, image_size)
    if picture.size == size:
        return picture
    if fit == "stretch":
        return picture.resize(size, resampling)
    return ImageOps.fit(picture, size, method=resampling)
