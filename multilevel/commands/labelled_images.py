"""Labelled images for exported models: one subfolder per class, with groups of images that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from multilevel.recipes.data.sources.folders import list_images, matched_part
from multilevel.recipes.data.sources.split_folders import training_folder
from multilevel.recipes.export import ExportedModel
from multilevel.solvers import DataError, SettingError
from multilevel.solvers.ranges import require


@dataclass(frozen=True)
class Labelled:
    """Labelled images: files [N], labels int [N], names of the classes by number, and groups int [N] or None."""

    files: list[Path]
    labels: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None


def labelled_images(folder: Path, group: str | None) -> Labelled:
    """The images of a folder with one subfolder per class.

    Raises:
        SettingError: the folder does not exist or has a subfolder ``train``, or ``group`` cannot be applied.
        DataError: no subfolder has images.
    """
    require("FOLDER", str(folder), folder.is_dir(), "a folder with one subfolder of images per class")
    expected = f"the images of one split, such as {folder / 'test'}: training images would flatter the models"
    require("FOLDER", str(folder), training_folder(folder) is None, expected)
    by_class, unlabelled, _ = list_images(folder, loose_class=False)
    if not by_class:
        raise DataError(f"{folder} has no subfolder with images: put those of each class into a folder of its name")
    if unlabelled:
        print(f"{len(unlabelled)} images without a label are left out, as {unlabelled[0]}")
    files = [file for images in by_class.values() for file in images]
    labels = np.repeat(np.arange(len(by_class)), [len(images) for images in by_class.values()])
    groups = None if group is None else np.array([group_of(file, folder, group) for file in files])
    return Labelled(files, labels, tuple(by_class), groups)


def group_of(file: Path, folder: Path, pattern: str) -> str:
    """The name of an image's group.

    Raises:
        SettingError: the pattern is not a regular expression, or does not match.

    >>> group_of(Path("new/scratch/part7-b.png"), Path("new"), r"part\\d+")
    'part7'
    """
    path = file.relative_to(folder)
    if pattern == "folder":
        return path.parent.as_posix()
    part = matched_part("group", pattern, path.as_posix())
    if part is None:
        raise SettingError("group", pattern, f"a regular expression that matches every file; {path} does not match")
    return part


def known_to(models: Mapping[str, ExportedModel], images: Labelled, missing: str) -> tuple[Labelled, list[str]]:
    """The images to compare, and lines about classes that a model lacks.

    Raises:
        SettingError: a model lacks a class, and ``missing_class=refuse``.
        DataError: fewer than two classes are left.
    """
    lines, names = [], list(images.class_names)
    for word, model in models.items():
        for name in [name for name in images.class_names if name not in model.class_names]:
            count = int((images.labels == images.class_names.index(name)).sum())
            if missing == "refuse":
                expected = f"leave_out or count: {word} does not know the class {name} of {count} images"
                raise SettingError("missing_class", missing, expected)
            treated = "left out" if missing == "leave_out" else "errors of that model"
            lines.append(f"{word} does not know the class {name}: its {count} images are {treated}")
            if missing == "leave_out" and name in names:
                names.remove(name)
    if len(names) < 2:
        raise DataError(f"images of {len(names)} classes are left ({', '.join(names)}): give images of at least two")
    chosen = np.isin(images.labels, [images.class_names.index(name) for name in names])
    labels = np.unique(images.labels[chosen], return_inverse=True)[1]
    files = [file for file, kept in zip(images.files, chosen, strict=True) if kept]
    groups = None if images.groups is None else images.groups[chosen]
    return replace(images, files=files, labels=labels, class_names=tuple(names), groups=groups), lines
