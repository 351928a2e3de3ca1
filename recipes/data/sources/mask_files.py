"""Which files of a folder are masks: ``masks/CLASS/NAME.png`` or ``CLASS/NAME_mask.png`` of ``CLASS/NAME.jpg``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from multilevel.solvers.errors import DataError

FOLDER = "masks"
SUFFIX = "_mask"


def find_masks(root: Path, files: Iterable[Path]) -> dict[Path, Path]:
    """The mask of each image that has one; a file is a mask only if the image is there that it belongs to.

    A folder ``masks`` repeats the folders of the images; images that lie in ``images`` may have theirs in ``masks``
    directly. Names may end in ``_mask`` there as well.

    Args:
        root: the folder that holds the classes.
        files: every image file below it.

    Raises:
        DataError: a file among the masks whose image is not there.
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
        raise DataError(f"{alone[0]} is a mask without an image: expected one of that name, in a folder of that name")
    return masks


def _images_of(key: Path) -> list[Path]:
    """Where the image of a mask may lie, both without their suffix."""
    bare = key.with_name(key.name.removesuffix(SUFFIX))
    if key.parts[0] != FOLDER or len(key.parts) < 2:
        return [bare] if bare != key else []
    inside = [Path(*path.parts[1:]) for path in (key, bare)]
    return inside + [Path("images", path) for path in inside]
