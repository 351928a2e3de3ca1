"""Opens image files of a fixed list of raster formats, whatever their suffix."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from PIL import Image

#: None of them runs another program, as PostScript would.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "AVIF", "DIB", "JPEG2000")


def open_raster(file: Path, side: int | None = None) -> Image.Image:
    """Open an image file, without decoding it yet.

    Args:
        file: its path.
        side: pixels of the longer side that are enough, for a thumbnail; a JPEG is then decoded at a fraction of its
            size, with less memory. None: the picture as it is.

    Raises:
        Exception: whatever Pillow raises for a broken file or one of another format.

    >>> folder.mkdir()
    >>> Image.new("L", (400, 200)).save(folder / "a.jpg")
    >>> with open_raster(folder / "a.jpg", side=100) as picture:
    ...     picture.size
    (200, 100)
    """
    picture = Image.open(file, formats=readable_formats())
    if side is not None:  # at least twice the size, for a sharp thumbnail
        share = min(1.0, 2 * side / max(picture.size))
        picture.draft(None, (math.ceil(share * picture.width), math.ceil(share * picture.height)))
    return picture


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
