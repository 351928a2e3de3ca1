"""Chooses the source that the settings name: a path, the hub, scikit-learn's digits, or generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from multilevel.recipes.data.images import Source, SourceSplits
from multilevel.recipes.data.planted import read_planted
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.sources.folders import read_image_folder
from multilevel.recipes.data.sources.loading import SUFFIX, parquet_folder
from multilevel.recipes.data.sources.metadata import read_metadata
from multilevel.recipes.data.sources.surfaces import read_surfaces
from multilevel.recipes.data.sources.tables import read_hub, read_parquet
from multilevel.recipes.data.targets.base import Labels, Targets
from multilevel.solvers.errors import SettingError

_DIGITS_RANGE = 16.0  # scikit-learn's digits count the ink of 4 x 4 cells


class DigitsSource(Source):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, available offline."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.labels = torch.tensor(digits.target, dtype=torch.int64)
        self.pictures = (digits.images * (255 / _DIGITS_RANGE)).round().astype(np.uint8)

    def open(self, row: int) -> Image.Image:
        return Image.fromarray(self.pictures[row])

    def describe_row(self, row: int) -> str:
        return f"row {row} of digits"


def read_sources(settings: DataSettings, targets: type[Targets] = Labels) -> SourceSplits:
    """Find the images and labels that the settings name, without decoding any image.

    Args:
        settings: name the data set.
        targets: the kind of targets that the task learns.

    Returns:
        The training images, the data set's own test images if any, and the names of the classes (none without labels).

    Raises:
        SettingError: ``data.path`` is required or does not exist, or a split or column does not exist.
        DataError: no images, missing labels, or a data set that cannot be downloaded or read.
    """
    if settings.path is not None:
        return read_path(Path(settings.path).expanduser(), settings, targets)
    if settings.hub is not None:
        return read_hub(settings.hub, settings, targets)
    if settings.name == "digits":
        return SourceSplits(DigitsSource(), None, tuple(str(digit) for digit in range(10)))
    if settings.name == "planted":
        return read_planted(settings.image_size, settings.patch_size)
    if settings.name == "surfaces":
        return read_surfaces()
    expected = "a folder of images, or of train*.parquet files (or set data.hub to a data set on the hub)"
    raise SettingError("data.path", settings.path, expected)


def read_path(path: Path, settings: DataSettings, targets: type[Targets]) -> SourceSplits:
    """Read a local data set: parquet if it has a parquet training file (in a clone from the hub, a subfolder does),
    images with a table of metadata, or a folder of images."""
    if path.is_file() and path.suffix.lower() == SUFFIX:
        return read_parquet(path, settings, targets)
    if not path.is_dir():
        expected = "an existing folder of images, or of train*.parquet files, or one parquet file"
        raise SettingError("data.path", str(path), expected)
    tables = parquet_folder(path, settings.train_split)
    if tables is not None:
        return read_parquet(tables, settings, targets)
    return read_metadata(path, settings, targets) or read_image_folder(path, settings, targets)
