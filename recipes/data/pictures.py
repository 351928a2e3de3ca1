"""Converts an image file of any mode and size to a square uint8 array."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from multilevel.recipes.data.pixel_range import PixelRange, eight_bits, kind_of

FITS = ("crop", "stretch")
_WHITE = (255, 255, 255, 255)
_Turn = Image.Transpose
#: What each orientation tag asks for.
TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
_WITH_TAG = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # blocks of a file that may have the tag
SIDEWAYS = (5, 6, 7, 8)  # the tags that swap width and height


def to_pixels(
    picture: Image.Image,
    image_size: int,
    channels: int,
    fit: str = "crop",
    pixel_range: PixelRange | None = None,
) -> np.ndarray:
    """Convert a picture to ``channels`` colours and a square.

    Transparent parts become white, grey of more than 8 bits is scaled to 8 bits, a camera's orientation tag is applied.

    Args:
        picture: any picture that Pillow has opened.
        image_size: height and width of the result.
        channels: 1 (grey) or 3 (RGB).
        fit: see ``to_square``.
        pixel_range: the range of the set that the picture belongs to; ``None``: that of a set of this picture.

    Returns:
        uint8 array ``[channels, image_size, image_size]``.

    Raises:
        Exception: whatever Pillow raises for a broken file; the caller knows the file's name.
    """
    picture = to_square(to_colours(upright(picture), channels, pixel_range), image_size, fit)
    array = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def upright(picture: Image.Image) -> Image.Image:
    """Rotate the picture as its orientation tag says."""
    return turned(picture, orientation(picture))


def orientation(picture: Image.Image) -> int:
    """The orientation tag, from 1 (upright) to 8, in EXIF or XMP; 1 for TIFF files, which Pillow turns as it reads.

    A PNG file is decoded for it, since the tag may come after the pixels.
    """
    if isinstance(picture, TiffImageFile):
        return 1
    tag = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return tag if tag in TURNS else 1


def stored_orientation(picture: Image.Image) -> int:
    """The orientation tag of a picture that has not been decoded yet, also that of a TIFF file."""
    if isinstance(picture, TiffImageFile):
        tag = picture.tag_v2.get(ExifTags.Base.Orientation, 1)
        return tag if tag in TURNS else 1
    return orientation(picture)


def turned(picture: Image.Image, tag: int) -> Image.Image:
    """The picture, transposed as the orientation tag says, without the tag."""
    if tag not in TURNS:
        return picture
    result = picture.transpose(TURNS[tag])
    for block in _WITH_TAG:
        result.info.pop(block, None)
    return result


def to_colours(picture: Image.Image, channels: int, pixel_range: PixelRange | None = None) -> Image.Image:
    """Convert the picture to mode ``L`` (one channel) or ``RGB`` (three).

    Raises:
        ValueError: it has more than 8 bits, and the set's range has no limits for such images.
    """
    mode = "L" if channels == 1 else "RGB"
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    if kind_of(picture) is not None:
        picture = eight_bits(picture, pixel_range)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, _WHITE), picture)
    return picture.convert(mode)


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
