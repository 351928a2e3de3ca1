"""Reads the folder to inspect, and decides which class is good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multilevel.recipes.data.sources.folders import list_images
from multilevel.reports.good_class import usual_good
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
    listed = f"one of the classes {', '.join(names)}" if names else "null: neither model nor folder has classes"
    if requested is not None:
        if requested not in names:
            raise SettingError("good", requested, listed)
        return Good(requested, "setting")
    if stored is not None:
        return Good(stored, "stored")
    if (usual := usual_good(names)) is not None:
        return Good(usual, "name")
    counts = Counter(name for name in truth if name in names)
    if not counts:
        raise SettingError("good", None, f"{listed}: neither a name nor labels tell which is good")
    return Good(str(counts.most_common(1)[0][0]), "largest")
