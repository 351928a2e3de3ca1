"""Reads the folder to inspect, and decides which class is good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multilevel.recipes.data.record import LETTERS, DataRecord
from multilevel.recipes.data.sources.folders import list_images
from multilevel.recipes.export.operating_point import good_class
from multilevel.runs.folder import RunFolder
from multilevel.solvers import DataError, SettingError


@dataclass(frozen=True)
class ImageFolder:
    """Image files and their classes.

    Attributes:
        files: the image files.
        truth: the class of each, by the name of its folder; None without a label.
        left_out: images without a label beside labelled ones, which are not inspected.
    """

    files: list[Path]
    truth: list[str | None]
    left_out: int

    @property
    def labelled(self) -> bool:
        return self.truth[0] is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the images, in order."""
        return tuple(dict.fromkeys(name for name in self.truth if name is not None))


@dataclass(frozen=True)
class Good:
    """The good class and why it was taken: ``setting``, ``stored``, ``name`` or ``largest``."""

    name: str
    reason: str


def read_folder(root: Path, class_names: Sequence[str], unknown: str) -> ImageFolder:
    """Find the images of a folder with a subfolder for each class, or without classes.

    Args:
        root: the folder.
        class_names: the model's classes; empty for an encoder, to which every class is known.
        unknown: what an unknown class means: refuse, defect, or unlabelled.

    Raises:
        SettingError: ``root`` is not a folder, or a class is unknown.
        DataError: it holds no images.
    """
    if not root.is_dir():
        raise SettingError("FOLDER", str(root), "a folder with a subfolder of images for each class, or of images")
    labelled, unlabelled, _ = list_images(root, loose_class=False)
    strangers = [name for name in labelled if class_names and name not in class_names]
    if strangers and unknown == "refuse":
        raise SettingError(
            "FOLDER",
            str(root / strangers[0]),
            f"one of the model's classes ({', '.join(class_names)}); unknown=defect counts other classes as defects, "
            "unknown=unlabelled takes no label from them",
        )
    if unknown == "unlabelled":
        unlabelled = [*unlabelled, *(file for name in strangers for file in labelled.pop(name))]
    if labelled:
        truth: list[str | None] = [name for name, files in labelled.items() for _ in files]
        return ImageFolder([file for files in labelled.values() for file in files], truth, len(unlabelled))
    if not unlabelled:
        raise DataError(f"{root} holds no images")
    return ImageFolder(unlabelled, [None] * len(unlabelled), 0)


def read_test_images(run: RunFolder) -> tuple[Path, ImageFolder]:
    """The test images of a run, and the folder that their names start from.

    Raises:
        SettingError: the run has no record of its images, or they are not in a folder.
        DataError: none of them was kept for testing, or a file is missing.
    """
    root = run.config().data.path
    expected = "a run on a folder of images, or EXPORT FOLDER: an exported folder and images"
    if root is None or not Path(root).is_dir() or not run.data.exists():
        raise SettingError("inspect", str(run.path), expected)
    record = DataRecord.read(run.data)
    images = record.test or record.train
    if images.names is None:
        raise SettingError("inspect", str(run.path), expected)
    tested = [position for position, part in enumerate(images.parts) if part == LETTERS["test"]]
    labelled = [position for position in tested if images.labels[position] >= 0]
    files = [Path(root, images.names[position]) for position in labelled]
    if not files:
        raise DataError(f"{run.path} kept no labelled images for testing: give a folder of images")
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} is missing, a test image of the run: give a folder of images")
    truth: list[str | None] = [record.class_names[images.labels[position]] for position in labelled]
    return Path(root), ImageFolder(files, truth, len(tested) - len(labelled))


def choose_good(requested: str | None, stored: str | None, names: Sequence[str], truth: Sequence[str | None]) -> Good:
    """Decide which class is good: the requested one, the stored one, one with a usual name, or the largest one.

    Args:
        requested: ``good=CLASS``.
        stored: the good class that the export stores.
        names: the model's classes; those of the folder for an encoder.
        truth: the class of each image.

    Raises:
        SettingError: ``requested`` is not a class, or nothing tells which class is good.

    >>> choose_good(None, None, ["scratch", "OK"], ["scratch", "scratch", "OK"])
    Good(name='OK', reason='name')
    """
    usual = good_class(names, requested)
    if usual is not None and requested is not None:
        return Good(usual, "setting")
    if stored is not None:
        return Good(stored, "stored")
    if usual is not None:
        return Good(usual, "name")
    counts = Counter(name for name in truth if name in names)
    if not counts:
        listed = f"one of the classes {', '.join(names)}"
        raise SettingError("good", None, f"{listed}: neither a name nor labels tell which is good")
    return Good(str(counts.most_common(1)[0][0]), "largest")
