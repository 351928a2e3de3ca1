"""Finds mask files in a folder: ``masks/CLASS/NAME.png`` or ``CLASS/NAME_mask.png`` for ``CLASS/NAME.jpg``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from multilevel.solvers.errors import DataError

FOLDER = "masks"
SUFFIX = "_mask"


def find_masks(root: Path, files: Iterable[Path]) -> dict[Path, Path]:
    """Find the mask of each image that has one; a file is a mask only if its image exists.

    A folder ``masks`` mirrors the folders of the images; masks of images in ``images`` may be directly in ``masks``.
    Names there may also end in ``_mask``.

    Args:
        root: the folder with the classes.
        files: every image file below it.

    Raises:
        DataError: a mask file has no image.
    """
    keys = {file.relative_to(root).with_suffix(""): file for file in files}
    masks, alone = {}, []
    for key, file in keys.items():
        image = next((keys[candidate] for candidate in _images_of(key) if candidate in keys), None)
        if image is not None:
            masks[image] = file
        elif key.parts[0] == FOLDER:
            alone.append(file)
    if alone and any(file.relative_to(root).parts[0] == FOLDER for file in masks.values()):
        raise DataError(f"{alone[0]} is a mask without an image: expected an image of that name in a like-named folder")
    return masks


def _images_of(key: Path) -> list[Path]:
    """The possible paths of a mask's image, both without suffix."""
    bare = key.with_name(key.name.removesuffix(SUFFIX))
    if key.parts[0] != FOLDER or len(key.parts) < 2:
        return [bare] if bare != key else []
    inside = [Path(*path.parts[1:]) for path in (key, bare)]
    return inside + [Path("images", path) for path in inside]
