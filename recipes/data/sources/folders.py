"""Reads folders of images: one subfolder per class; images at the top or in ``unlabelled`` have no label."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from PIL import Image

from multilevel.recipes.data.images import Source, SourceSplits
from multilevel.recipes.data.raster import open_raster
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.sources.listing import (
    SUFFIXES,
    images_among,
    images_below,
    kinds_left_out,
    visible_folders,
)
from multilevel.recipes.data.sources.mask_files import FOLDER as MASKS
from multilevel.recipes.data.sources.mask_files import find_masks
from multilevel.recipes.data.sources.split_folders import (
    UNLABELLED,
    find_split_folders,
    refuse_splits_in_classes,
)
from multilevel.recipes.data.targets.base import Labels, Targets
from multilevel.solvers.errors import DataError, SettingError

Labelled = dict[str, list[Path]]
Masks = dict[Path, Path]


class FolderSource(Source):
    """Image files and their labels: class after class, those without a label last.

    Args:
        root: ``data.path``.
        labelled: the files of each class.
        class_names: names of the classes, by label.
        unlabelled: files without a label; theirs is -1.
        masks: the mask file of each image that has one.
    """

    names: list[str]

    def __init__(
        self, root: Path, labelled: Labelled, class_names: tuple[str, ...], unlabelled: list[Path], masks: Masks
    ) -> None:
        self.files = [*chain.from_iterable(labelled.values()), *unlabelled]
        self.names = [file.relative_to(root).as_posix() for file in self.files]
        self.class_names = class_names
        self.left_out = kinds_left_out(root)
        labels = [class_names.index(name) for name, images in labelled.items() for _ in images]
        self.labels = torch.tensor(labels + [-1] * len(unlabelled), dtype=torch.int64)
        self.masks = masks
        self.has_masks = bool(masks)
        self.nested = self._nested()

    def open(self, row: int) -> Image.Image:
        return open_raster(self.files[row], max_pixels=self.max_pixels)

    def describe_row(self, row: int) -> str:
        return str(self.files[row])

    def stamp(self, row: int) -> int:
        """The size of the file and its mask, in bytes."""
        return sum(os.path.getsize(file) for file in self._files(row))

    def contents(self, row: int) -> bytes:
        return b"".join(file.read_bytes() for file in self._files(row))

    def _files(self, row: int) -> list[Path]:
        mask = self.masks.get(self.files[row])
        return [self.files[row], *([] if mask is None else [mask])]

    def group_keys(self, setting: str) -> list[str | None]:
        """``folder``: the subfolder of its class that an image is in; otherwise the part of the file name that a
        regular expression matches, or its first group."""
        if setting == "folder":
            return [self._subfolder(row) for row in range(len(self))]
        keys = [matched_part("data.group", setting, name) for name in self.names]
        if not any(key is not None for key in keys):
            raise SettingError("data.group", setting, f"a regular expression that matches names like {self.names[0]}")
        return keys

    def _subfolder(self, row: int) -> str | None:
        """The folders between that of the class and the file."""
        folders = self.names[row].split("/")[:-1]
        label = int(self.labels[row])
        tops = [self.class_names[label]] if label >= 0 else [name for name in folders if name.lower() in UNLABELLED]
        below = folders[folders.index(tops[0]) + 1 :] if tops and tops[0] in folders else folders
        return "/".join(below) or None

    def _nested(self) -> dict[str, list[str]]:
        folders: dict[str, set[str]] = {}
        for row, label in enumerate(self.labels.tolist()):
            below = self._subfolder(row) if label >= 0 else None
            if below is not None:
                folders.setdefault(self.class_names[label], set()).add(below.split("/")[0])
        return {name: sorted(below) for name, below in folders.items()}

    def open_mask(self, row: int) -> Image.Image | None:
        mask = self.masks.get(self.files[row])
        return None if mask is None else open_raster(mask, max_pixels=self.max_pixels)

    def describe_mask(self, row: int) -> str:
        return str(self.masks[self.files[row]])


def matched_part(setting: str, pattern: str, name: str) -> str | None:
    """The part of a file's name that a regular expression matches, or its first group; None if it does not match.

    Raises:
        SettingError: ``pattern``, the value of ``setting``, is not a regular expression.

    >>> matched_part("data.group", r"part(\\d+)", "good/part12-3.png")
    '12'
    """
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise SettingError(setting, pattern, f"folder, or a regular expression ({error})") from None
    return None if match is None else match[1] if match.re.groups else match[0]


def read_image_folder(root: Path, settings: DataSettings, targets: type[Targets] = Labels) -> SourceSplits:
    """Find the images of a folder.

    If there is a folder of training images, it has the classes, and a folder of test images, if there is one, the test
    images: see ``find_split_folders``. Otherwise the classes are subfolders of ``root`` itself. Images at the top, and
    those in ``unlabelled``, have no label. Mask files (see ``find_masks``) do not count as images.

    Args:
        root: an existing folder.
        settings: ``train_split`` and ``test_split`` are read.
        targets: the kind of targets that the task learns. If they are marked in the images and there are no classes,
            the images at the top form one class.

    Returns:
        The training images and, if there is a test folder, the labelled test images.

    Raises:
        DataError: no images, folders that may be splits or classes, or a test folder without classes, or with classes
            that the training images lack.
    """
    splits = find_split_folders(root, settings)
    classes_root = splits.train or root
    labelled, unlabelled, masks = list_images(classes_root, targets.marked)
    if splits.train is not None:
        unlabelled = unlabelled + unlabelled_images(root)
    if not labelled and not unlabelled:
        raise DataError(
            f"data.path={classes_root} holds no images ({', '.join(sorted(SUFFIXES))}) and no "
            f"{settings.train_split}*.parquet: expected a subfolder of images for each class"
        )
    class_names = tuple(labelled)
    test = None
    if class_names and splits.test is not None:
        test = read_test_folder(root, splits.test, class_names, targets.marked)
    notes = (*splits.notes, *without_images(classes_root, labelled))
    source = FolderSource(root, labelled, class_names, unlabelled, masks)
    return SourceSplits(source, test, class_names, notes=notes)


def without_images(root: Path, labelled: Labelled) -> list[str]:
    """A line about the folders that have files, and no images, if there are any."""
    special = (*UNLABELLED, MASKS)
    folders = [folder for folder in visible_folders(root) if folder.name not in labelled]
    filled = [folder for folder in folders if folder.name.lower() not in special and kinds_left_out(folder)]
    named = ", ".join(f"{folder.name} ({', '.join(kinds_left_out(folder))})" for folder in filled)
    return [f"folders without images, which are not classes: {named}"] if labelled and filled else []


def read_test_folder(root: Path, test_root: Path, class_names: tuple[str, ...], loose_class: bool) -> FolderSource:
    """Read the labelled images of a test folder below ``root``.

    Raises:
        DataError: there are none, or a class is not among ``class_names``.
    """
    labelled, _, masks = list_images(test_root, loose_class)
    if not labelled:
        raise DataError(f"{test_root} has no class folders with images; expected {', '.join(class_names)}")
    unknown = [name for name in labelled if name not in class_names]
    if unknown:
        raise DataError(f"{test_root / unknown[0]} is a class without training images; remove or rename it")
    return FolderSource(root, labelled, class_names, [], masks)


def list_images(root: Path, loose_class: bool) -> tuple[Labelled, list[Path], Masks]:
    """List the images below ``root``: by class in alphabetical order, then those without a label, and masks by image.

    With ``loose_class``, if there are masks and no classes, the images at the top form a class ``images``.
    """
    folders = [folder for folder in visible_folders(root) if folder.name.lower() not in UNLABELLED]
    refuse_splits_in_classes(folders)
    refuse_linked_classes(folders)
    by_class = {folder.name: images_below(folder) for folder in folders}
    loose = unlabelled_images(root)
    masks = find_masks(root, [*chain.from_iterable(by_class.values()), *loose])
    are_masks = set(masks.values())
    by_class = {name: [file for file in images if file not in are_masks] for name, images in by_class.items()}
    labelled = {name: images for name, images in by_class.items() if images}
    unlabelled = [file for file in loose if file not in are_masks]
    if loose_class and masks and not labelled:
        labelled = {"images": [file for file in unlabelled if file.parent == root]}
        unlabelled = [file for file in unlabelled if file.parent != root]
    return labelled, unlabelled, masks


def refuse_linked_classes(folders: Iterable[Path]) -> None:
    """Raise DataError for two class folders of which one is a link to the other."""
    places: dict[Path, Path] = {}
    for folder in folders:
        other = places.setdefault(folder.resolve(), folder)
        if other != folder:
            raise DataError(f"{other} and {folder} are one folder by a link, so its images would be of two classes")


def unlabelled_images(root: Path) -> list[Path]:
    """The images directly in ``root``, and those in its folder ``unlabelled``."""
    loose = images_among(root.iterdir())
    folders = [folder for folder in visible_folders(root) if folder.name.lower() in UNLABELLED]
    return loose + [file for folder in folders for file in images_below(folder)]
