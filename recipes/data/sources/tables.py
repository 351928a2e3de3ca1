"""Reads data sets with the ``datasets`` library: local parquet files, or from the Hugging Face hub."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multilevel.recipes.data import columns
from multilevel.recipes.data.images import Source, SourceSplits
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.sources.cells import cell_bytes, open_cell
from multilevel.recipes.data.sources.loading import load_parquet, load_tables, parquet_files, test_files
from multilevel.recipes.data.targets.base import Labels, Targets
from multilevel.solvers.errors import DataError, SettingError

TEST_SPLITS = ("test", "validation")
_PARTS = 3  # parts of a data set: finetuning, mask learning, test


class TableSource(Source):
    """The rows of a table with encoded images.

    Args:
        table: a ``datasets.Dataset``.
        image_column: its column of ``{bytes, path}`` structures, or of bytes.
        labels: int64 tensor ``[N]``.
        name: what the table is called in messages.
        mask_column: its column of masks, as that of images; null where nothing is marked.

    Attributes:
        folders: where the files are that cells may name.
    """

    folders: Sequence[Path] = ()

    def __init__(
        self, table: Any, image_column: str, labels: Tensor, name: str, mask_column: str | None = None
    ) -> None:
        self.table = table
        self.images = table.data.column(image_column)
        self.labels = labels
        self.name = name
        self.masks = None if mask_column is None else table.data.column(mask_column)
        self.has_masks = mask_column is not None

    def open(self, row: int) -> Image.Image:
        picture = open_cell(self.images[row].as_py(), self.folders, self.max_pixels)
        if picture is None:
            raise ValueError("the cell is empty")
        return picture

    def describe_row(self, row: int) -> str:
        return f"row {row} of {self.name}"

    def stamp(self, row: int) -> int:
        """A checksum of the image's list of labels or boxes."""
        targets = self.multilabels[row].numpy() if self.multilabels is not None else self.boxes and self.boxes[row]
        return 0 if targets is None else zlib.crc32(np.ascontiguousarray(targets).tobytes())

    def contents(self, row: int) -> bytes:
        columns = [column for column in (self.images, self.masks) if column is not None]
        return b"".join(cell_bytes(column[row].as_py(), self.folders) for column in columns)

    def group_keys(self, setting: str) -> list[str | None]:
        """The values of the column with this name."""
        if setting not in self.table.features:
            raise SettingError("data.group", setting, f"a column of the table: {', '.join(self.table.features)}")
        values = self.table.data.column(setting).to_pylist()
        return [None if value is None else str(value) for value in values]

    def open_mask(self, row: int) -> Image.Image | None:
        assert self.masks is not None
        return open_cell(self.masks[row].as_py(), self.folders, self.max_pixels)


def read_parquet(path: Path, settings: DataSettings, targets: type[Targets] = Labels) -> SourceSplits:
    """Read ``train*.parquet`` and, if they exist, ``test*.parquet`` or ``validation*.parquet``.

    Args:
        path: a folder, or one parquet file with the training images.
        settings: the names of splits and columns are read.
        targets: the kind of targets that the task learns.

    Raises:
        SettingError: a split or column does not exist.
        DataError: unreadable files or missing labels.
    """
    if path.is_dir():
        files = {
            "train": parquet_files(path, settings.train_split),
            "test": test_files(path, settings.test_split),
        }
    else:
        files = {"train": [path]}
    # each split by itself: `datasets` reads the second with the class numbers of the first
    tables = {split: load_parquet(of_split, str(path)) for split, of_split in files.items() if of_split}
    sources = to_splits(tables["train"], tables.get("test"), settings, str(path), targets)
    return with_files(sources, path if path.is_dir() else path.parent)


def read_hub(hub: str, settings: DataSettings, targets: type[Targets] = Labels) -> SourceSplits:
    """Read a data set from the hub, or from the local cache if it was downloaded before.

    Raises:
        SettingError: the data set has no such split or column.
        DataError: the data set cannot be downloaded, or labels are missing.
    """
    tables = load_tables(hub, f"{hub} cannot be downloaded from the hub; data.path takes a local copy")
    for setting, split in (("train_split", settings.train_split), ("test_split", settings.test_split)):
        if split is not None and split not in tables:
            raise SettingError(f"data.{setting}", split, f"a split of {hub}: {', '.join(tables)}")
    names = TEST_SPLITS if settings.test_split is None else (settings.test_split,)
    test_split = next((name for name in names if name in tables), None)
    test = tables[test_split] if test_split is not None else None
    import datasets

    sources = to_splits(tables[settings.train_split], test, settings, hub, targets)
    return with_files(sources, Path(datasets.config.HF_CACHE_HOME), Path(hub))


def with_files(sources: SourceSplits, *folders: Path) -> SourceSplits:
    """The sources, whose cells may name files in ``folders``."""
    for source in (sources.train, sources.test):
        if isinstance(source, TableSource):
            source.folders = [folder.resolve() for folder in folders]
    return sources


def to_splits(train: Any, test: Any | None, settings: DataSettings, name: str, targets: type[Targets]) -> SourceSplits:
    """Choose the columns, and read labels and targets of both splits."""
    if len(train) == 0:
        raise DataError(f"the training split of {name} holds no rows")
    tables = {"train": train, "test": test} if test is not None and len(test) else {"train": train}
    image_column = columns.find_image_column(train.features, settings.image_column)
    if targets.lists:
        return with_lists(tables, image_column, settings, name)
    label_column = columns.find_label_column(train.features, settings.label_column)
    mask_column = boxes_column = None
    tiled = settings.tiles is not None
    if targets.marked or tiled:
        mask_column = columns.find_mask_column(train.features, settings.mask_column, image_column)
    if label_column is None and not targets.marked:
        tables = {"train": train}
    if targets.boxed or tiled:
        boxes_column = columns.find_boxes_column(train.features, settings.boxes_column)
    class_names: columns.Names | None = None
    target_names: columns.Names | None = None
    sources: dict[str, TableSource] = {}
    used = (image_column, label_column, mask_column, boxes_column)
    for split, table in tables.items():
        check_columns(table, used, f"{name} ({split})")
        labels = torch.full((len(table),), -1, dtype=torch.int64)
        if label_column is not None:
            class_names, labels = columns.read_labels(table, label_column, class_names, f"{name} ({split})")
        source = sources[split] = TableSource(table, image_column, labels, f"{name} ({split})", mask_column)
        if boxes_column is not None:
            target_names, source.boxes = columns.read_boxes(table, boxes_column, target_names, source.name)
    notes = columns.about_labels(train.features, label_column, settings.label_column)
    return SourceSplits(sources["train"], sources.get("test"), class_names or (), target_names or (), notes=notes)


def check_columns(table: Any, used: Iterable[str | None], name: str) -> None:
    """Raise DataError if a table lacks one of the columns that are used."""
    missing = next((column for column in used if column is not None and column not in table.features), None)
    if missing is not None:
        raise DataError(f"{name} has no column {missing!r}, unlike the training split: {', '.join(table.features)}")


def with_lists(tables: dict[str, Any], image_column: str, settings: DataSettings, name: str) -> SourceSplits:
    """Read lists of labels; the images are split by the rarest label of each list."""
    lists_column = columns.find_lists_column(tables["train"].features, settings.label_column)
    names: columns.Names | None = None
    sources: dict[str, TableSource] = {}
    for split, table in tables.items():
        check_columns(table, (image_column, lists_column), f"{name} ({split})")
        names, values = columns.read_lists(table, lists_column, names, f"{name} ({split})")
        labels = columns.rarest_classes(values, _PARTS)
        source = sources[split] = TableSource(table, image_column, labels, f"{name} ({split})")
        source.multilabels = values
    assert names is not None
    return SourceSplits(sources["train"], sources.get("test"), (*names, "other"), names)
