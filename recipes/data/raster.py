"""Opens image files of a fixed list of raster formats, whatever their suffix, and bounds the memory of decoding."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

#: None of them runs another program, as PostScript would.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "AVIF", "DIB", "JPEG2000")
MAX_PIXELS = 90_000_000
LARGE = 16_000_000  # pixels; decoding such a picture takes up to 16 bytes for each
_large_pictures = threading.RLock()


def open_raster(
    file: Path | BinaryIO, side: int | None = None, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Open an image file, without decoding it yet.

    Args:
        file: its path, or the open file.
        side: pixels of the longer side that are enough, for a thumbnail; a JPEG is then decoded at a fraction of its
            size, with less memory. None: the picture as it is.
        max_pixels: the largest number of pixels, ``data.max_pixels``.
        formats: some of ``FORMATS``; None: all that this Pillow reads.

    Raises:
        ValueError: more than ``max_pixels``.
        Exception: whatever Pillow raises for a broken file or one of another format.

    >>> folder.mkdir()
    >>> Image.new("L", (400, 200)).save(folder / "a.jpg")
    >>> with open_raster(folder / "a.jpg", side=100) as picture:
    ...     picture.size
    (200, 100)
    """
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's own limit warns, and at twice its value raises
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        picture = Image.open(file, formats=formats or readable_formats())
    except Image.DecompressionBombError:
        raise _too_large("more pixels than", max_pixels) from None
    if picture.width * picture.height > max_pixels:
        raise _too_large(f"{picture.width:,} x {picture.height:,} pixels are more than", max_pixels)
    if side is not None:  # at least twice the size, for a sharp thumbnail
        share = min(1.0, 2 * side / max(picture.size))
        picture.draft(None, (math.ceil(share * picture.width), math.ceil(share * picture.height)))
    return picture


def _too_large(more: str, max_pixels: int) -> ValueError:
    kept = "an export keeps this limit as max_pixels in preprocessor_config.json"
    return ValueError(f"{more} data.max_pixels={max_pixels:,} allows ({kept})")


@contextmanager
def bounded(picture: Image.Image) -> Iterator[Image.Image]:
    """Decode a large picture while no other thread decodes one, so that threads do not multiply its memory.

    >>> with bounded(Image.new("L", (4, 2))) as picture:
    ...     picture.size
    (4, 2)
    """
    with picture:
        if picture.width * picture.height <= LARGE:
            yield picture
        else:
            with _large_pictures:
                yield picture


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
