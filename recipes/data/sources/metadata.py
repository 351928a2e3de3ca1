"""Reads images that ``metadata.csv`` or ``metadata.jsonl`` describes, as `datasets`' imagefolder does."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multilevel.recipes.data import columns
from multilevel.recipes.data.images import SourceSplits
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.sources.listing import has_images, images_below, visible_folders
from multilevel.recipes.data.sources.split_folders import UNLABELLED, find_split_folders
from multilevel.recipes.data.sources.tables import to_splits, with_files
from multilevel.recipes.data.targets.base import Targets
from multilevel.solvers.errors import DataError, SettingError
from multilevel.solvers.files import parse_json

NAMES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"
IMAGE = "image"


@dataclass(frozen=True)
class Metadata:
    """The rows of a file that describes images.

    Attributes:
        file: the file.
        rows: of each image, its columns; ``file_name`` is below the folder of the file.
    """

    file: Path
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> Metadata | None:
        """Read the file of a folder, if there is one with a column ``file_name``.

        Raises:
            DataError: it cannot be read.
        """
        for file in (folder / name for name in NAMES):
            if file.is_file():
                try:
                    rows = _rows(file)
                except (OSError, ValueError, csv.Error) as error:
                    raise DataError(f"{file} cannot be read ({' '.join(str(error).split())})") from error
                if any(FILE_NAME in row for row in rows):
                    return cls(file, rows)
        return None

    def images(self) -> list[Path]:
        """The image of each row.

        Raises:
            DataError: there is no such file in the folder.
        """
        folder = self.file.parent
        images = []
        for number, row in enumerate(self.rows):
            image = folder / str(row.get(FILE_NAME))
            if not image.is_file() or not image.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"row {number} of {self.file} names {row.get(FILE_NAME)}: expected a file in {folder}")
            images.append(image)
        return images

    def table(self, images: list[Path], rows: list[dict[str, Any]]) -> Any:
        """A ``datasets.Dataset`` with a column ``image``.

        Raises:
            DataError: a column has values of several types.
        """
        import datasets

        names = dict.fromkeys(name for row in rows for name in row if name not in (FILE_NAME, IMAGE))
        values = {IMAGE: list(map(str, images)), **{name: [row.get(name) for row in rows] for name in names}}
        try:
            return datasets.Dataset.from_dict(values).cast_column(IMAGE, datasets.Image())
        except (TypeError, ValueError) as error:  # from Arrow
            raise DataError(f"{self.file} has a column of mixed values ({' '.join(str(error).split())})") from error


def read_metadata(root: Path, settings: DataSettings, targets: type[Targets]) -> SourceSplits | None:
    """The images that a file in ``root``, or one in the folder of each split, describes; ``None`` without such a file,
    or if its columns have no targets and there are class folders or masks.

    Args:
        root: an existing folder.
        settings: the names of splits and columns are read.
        targets: the kind of targets that the task learns.

    Raises:
        SettingError: a column does not exist; or there are class folders, too, and ``data.label_column`` is not set.
        DataError: a file that cannot be read, or names an image that does not exist.
    """
    whole = Metadata.of(root)
    nested = [Metadata.of(folder) for folder in visible_folders(root)]
    if whole is None and not any(nested):
        return None
    splits = find_split_folders(root, settings)
    train_root = splits.train or root
    train = whole or Metadata.of(train_root)
    if train is None:
        return None
    images = train.images()
    inside = [splits.train is None or image.is_relative_to(splits.train) for image in images]
    table = train.table(*_chosen(images, train.rows, inside))
    if not _has_targets(table.features, train_root, settings, targets):
        return None
    test_table = None
    listed = set(images)
    if splits.test is not None:
        test = whole or Metadata.of(splits.test)
        if test is None:
            raise DataError(f"{splits.test} has no {train.file.name}, unlike {train_root}")
        test_images = test.images()
        listed |= set(test_images)
        tested = [image.is_relative_to(splits.test) for image in test_images]
        test_table = test.table(*_chosen(test_images, test.rows, tested))
    sources = with_files(to_splits(table, test_table, settings, str(train.file), targets), root)
    unlisted = len(set(images_below(root)) - listed)
    lines = [f"{train.file.name}: {unlisted:,} images that it does not name are not read"] if unlisted else []
    return replace(sources, notes=(*splits.notes, *lines, *sources.notes))


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file, without empty cells."""
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
    else:
        rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    return [{key: value for key, value in row.items() if key is not None and value != ""} for row in rows]


def _chosen(images: list[Path], rows: list[Any], chosen: list[bool]) -> tuple[list[Path], list[Any]]:
    pairs = [pair for pair, wanted in zip(zip(images, rows, strict=True), chosen, strict=True) if wanted]
    return [image for image, _ in pairs], [row for _, row in pairs]


def _has_targets(features: Any, train_root: Path, settings: DataSettings, targets: type[Targets]) -> bool:
    """Whether the columns, not the folders, have the targets.

    Raises:
        SettingError: both may have them.
    """
    if targets.marked:
        mask = columns.find_mask_column(features, settings.mask_column, IMAGE)
        return mask is not None or columns.find_boxes_column(features, settings.boxes_column) is not None
    folders = (folder for folder in visible_folders(train_root) if folder.name.lower() not in UNLABELLED)
    classes = [folder.name for folder in folders if has_images(folder)]
    if settings.label_column is not None or targets.lists or len(classes) < 2:
        return True
    column = columns.find_label_column(features, None)
    if column is not None:
        expected = (
            f"a column of {' or '.join(NAMES)}, such as {column}, if the labels are there; remove that file if "
            f"they are the names of the folders {', '.join(classes[:3])}"
        )
        raise SettingError("data.label_column", None, expected)
    return False
