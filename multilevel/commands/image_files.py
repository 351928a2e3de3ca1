"""Reads the images that a command line names and runs an exported model on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from multilevel.configuration.command_line import read
from multilevel.recipes.data.images import worker_count
from multilevel.recipes.data.raster import bounded
from multilevel.recipes.data.sources.listing import images_below
from multilevel.recipes.export import ExportedModel
from multilevel.recipes.export.optics import Optics
from multilevel.recipes.settings import chosen_device
from multilevel.solvers import DataError, SettingError
from multilevel.solvers.files import shown
from multilevel.solvers.ranges import Count, require


@dataclass
class ImageFileSettings:
    """Settings of a command that reads image files.

    Args:
        output: the file to write.
        batch_size: images at a time.
        device: device that PyTorch computes on.
    """

    output: str
    batch_size: Count = 64
    device: str = "auto"


@dataclass(frozen=True)
class Request:
    """A request to ``multilevel predict``, ``monitor`` or ``suggest``.

    Attributes:
        model: the exported model.
        folder: its folder.
        files: the images, without duplicates.
        output: the typed output.
        batch_size: images at a time.
        settings: all settings of the command.
    """

    model: ExportedModel
    folder: Path
    files: list[Path]
    output: str
    batch_size: int
    settings: Any = None

    @classmethod
    def parse(cls, command: str, arguments: Sequence[str], settings_class: type[ImageFileSettings]) -> Request:
        """Read ``EXPORT FILE ... [SETTING=VALUE ...]``.

        Raises:
            SettingError: an unknown setting, an unusable value, a missing file, or a folder that is not an export.
            DataError: a folder without images.
            MultilevelError: a broken export.
        """
        line = read(command, arguments, settings_class, words=True, recipe=False)
        usage = f"an exported folder and images: multilevel {command} EXPORT FILE ..."
        require(command, " ".join(line.words) or None, len(line.words) >= 2, usage)
        folder, settings = Path(line.words[0]), line.settings
        files = find_images(line.words[1:])
        model = ExportedModel(folder, chosen_device(settings.device))
        return cls(model, folder, files, settings.output, settings.batch_size, settings)

    def run(self, optics: bool = False) -> Results:
        """Decode the images in threads and run the model on them, a batch at a time.

        Args:
            optics: whether to measure the pictures' optics, too.
        """
        model, logits, features = self.model, [], []
        measured: list[Optics] = []
        errors: dict[Path, str] = {}
        Image.init()  # Pillow looks for its formats on first use, which is not safe in threads
        with (
            ThreadPoolExecutor(worker_count(), "decode") as pool,
            tqdm(total=len(self.files), desc="images", leave=False, disable=None) as bar,
        ):
            for start in range(0, len(self.files), self.batch_size):
                batch = self.files[start : start + self.batch_size]
                read = list(pool.map(lambda file: _read(file, model, optics), batch))
                errors |= {file: result for file, result in zip(batch, read, strict=True) if isinstance(result, str)}
                readable = [result for result in read if not isinstance(result, str)]
                measured += [result for _, result in readable if result is not None]
                if readable:
                    some_logits, some_features = model.of_pictures([pixels for pixels, _ in readable], self.batch_size)
                    features.append(some_features)
                    logits += [] if some_logits is None else [some_logits]
                bar.update(len(batch))
        read_files = [file for file in self.files if file not in errors]
        joined = np.concatenate(features) if features else np.zeros((0, 0), np.float32)
        joined_logits = np.concatenate(logits) if logits else None
        return Results(read_files, joined, joined_logits, errors, Optics.joined(measured) if measured else None)


@dataclass(frozen=True)
class Results:
    """A model's results for images.

    Attributes:
        files: the readable files.
        features: float32 [N, width], of the readable files.
        logits: float32 [N, classes]; None without a classifier or without images.
        errors: for each unreadable file, the reason.
        optics: of the readable files; None if not measured.
    """

    files: list[Path]
    features: np.ndarray
    logits: np.ndarray | None
    errors: Mapping[Path, str]
    optics: Optics | None = None


def find_images(places: Sequence[str]) -> list[Path]:
    """The files, and the images below the folders, without duplicates.

    Raises:
        SettingError: a file or folder does not exist.
        DataError: a folder without images.
    """
    files: dict[Path, None] = {}
    for path in map(Path, places):
        if not path.exists():
            raise SettingError("FILE", shown(path), "an image, or a folder of images")
        usable = path.is_dir() or path.is_file()
        if not usable:
            raise SettingError("FILE", shown(path), "an image, or a folder of images; this is a device or a pipe")
        below = images_below(path) if path.is_dir() else [path]
        if not below:
            raise DataError(f"{path} holds no images")
        files |= dict.fromkeys(below)
    return list(files)


def _read(file: Path, model: ExportedModel, optics: bool) -> tuple[np.ndarray, Optics | None] | str:
    """Pixels uint8 [T, C, H, W] and, on request, optics, or the reason why they cannot be read."""
    try:
        with bounded(model.open(file)) as picture:
            pixels = model.pixels(picture)
            return pixels, Optics.of(picture, model.pixel_range) if optics else None
    except Exception as error:  # Pillow's formats raise errors of many kinds for broken files
        return f"unreadable ({type(error).__name__}: {' '.join(str(error).split())})"
