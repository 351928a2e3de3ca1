"""Lists the images in folders: visible files with a known suffix, through symbolic links."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from multilevel.solvers.errors import DataError

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif"),
        *(".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
BROKEN_LINK = "broken links"


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, list[str]]]:
    """A folder and each visible folder below it, with the names of its visible files and broken links.

    Links to folders are followed, except those to a folder that contains the link.

    Args:
        folder: where to begin.
        above: the folders without links that the walk has entered and not left.

    Raises:
        DataError: a folder that cannot be read.
    """
    place = folder.resolve()
    if any(entered.is_relative_to(place) for entered in above):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from error
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    yield folder, [entry.name for entry in visible if not entry.is_dir()]
    for entry in visible:
        if entry.is_dir():
            yield from walk(folder / entry.name, (*above, place))


def images_below(folder: Path) -> list[Path]:
    """Every image in ``folder`` and in its subfolders, sorted."""
    return sorted(path for parent, names in walk(folder) for path in images_among(parent / name for name in names))


def images_among(paths: Iterable[Path]) -> list[Path]:
    """The visible image files among ``paths``, sorted."""
    return sorted(
        path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def has_images(folder: Path) -> bool:
    """Whether there is an image in ``folder`` or in a subfolder."""
    return any(images_among(parent / name for name in names) for parent, names in walk(folder))


def visible_folders(root: Path) -> list[Path]:
    """The visible subfolders of ``root`` in alphabetical order, except links to a folder that contains it.

    Raises:
        DataError: the folder cannot be read.
    """
    place = root.resolve()
    try:
        paths = sorted(root.iterdir())
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror})") from error
    folders = (path for path in paths if path.is_dir() and not path.name.startswith("."))
    return [folder for folder in folders if not place.is_relative_to(folder.resolve())]


def kinds_left_out(root: Path) -> Counter[str]:
    """The visible files below a folder that are not images, counted by suffix, and broken links."""
    counts: Counter[str] = Counter()
    for parent, names in walk(root):
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix not in SUFFIXES:
                counts[suffix or "without a suffix"] += 1
            elif not (parent / name).exists():
                counts[BROKEN_LINK] += 1
    return Counter(dict(sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))))
