"""Opens the images in the cells of a table, whose paths lead to no file outside the table's folders."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from multilevel.recipes.data.raster import MAX_PIXELS, open_raster

# Pillow tries formats one by one, which takes a third of the time for small images.
_FORMATS = {b"\xff\xd8": ("JPEG",), b"\x89PNG": ("PNG",)}


def open_cell(cell: Any, folders: Sequence[Path] = (), max_pixels: int = MAX_PIXELS) -> Image.Image | None:
    """Open the image in one cell; ``None`` for an empty cell.

    It works cell by cell because `datasets` decodes slowly and Arrow's take() overflows beyond 2 GiB.

    Args:
        cell: bytes, a path, or ``{"bytes": ..., "path": ...}``.
        folders: where files may be, without links; a relative path is below the first.
        max_pixels: the largest number of pixels.

    Raises:
        ValueError: a file outside ``folders``, or an image of too many pixels.
        Exception: whatever Pillow raises for a broken image.
    """
    contents = _contents(cell, folders)
    if not isinstance(contents, bytes):
        return None if contents is None else open_raster(contents, max_pixels=max_pixels)
    formats = next((formats for start, formats in _FORMATS.items() if contents.startswith(start)), None)
    return open_raster(io.BytesIO(contents), max_pixels=max_pixels, formats=formats)


def cell_bytes(cell: Any, folders: Sequence[Path] = ()) -> bytes:
    """The bytes of the image in a cell; of a path, those of its file; see ``open_cell``."""
    contents = _contents(cell, folders)
    return contents.read_bytes() if isinstance(contents, Path) else contents or b""


def _contents(cell: Any, folders: Sequence[Path]) -> bytes | Path | None:
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if cell is None or isinstance(cell, bytes):
        return cell
    file = (folders[0] / cell if folders else Path(cell)).resolve()
    if not any(map(file.is_relative_to, folders)):
        raise ValueError(f"the table names {cell}, a file outside its folder")
    return file
