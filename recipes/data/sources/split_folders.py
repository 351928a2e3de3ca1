"""Finds the folders of the training and test images, by the names that `datasets` knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.sources.listing import has_images, images_below, visible_folders
from multilevel.recipes.data.sources.mask_files import FOLDER as MASKS
from multilevel.solvers.errors import DataError

UNLABELLED = ("unlabelled", "unlabeled")
#: As `datasets.data_files.SPLIT_KEYWORDS`, but in any case.
TRAIN = ("train", "training")
TEST = ("test", "testing", "eval", "evaluation")
VALIDATION = ("validation", "valid", "val", "dev")
_SEPARATORS = "-._ 0-9"


@dataclass(frozen=True)
class SplitFolders:
    """The folders of a data set's splits.

    Attributes:
        train: with the training classes; ``None``: the classes are at the top.
        test: with the classes of the test images, if there is one.
        notes: lines about folders that are not read.
    """

    train: Path | None
    test: Path | None
    notes: tuple[str, ...] = ()


def find_split_folders(root: Path, settings: DataSettings) -> SplitFolders:
    """Find the folders of the splits among the subfolders of ``root``.

    ``train`` or ``training`` has the training classes. The test images are in the folder ``settings.test_split``,
    otherwise in ``test``, ``testing``, ``eval`` or ``evaluation``, otherwise in ``validation``, ``valid``, ``val`` or
    ``dev``. Names such as ``train_images`` and ``test_images`` count if both splits have one, with class folders.

    Raises:
        DataError: several folders of one split, a test folder without a training folder, or a training folder that may
            be a class.
    """
    folders = visible_folders(root)
    train_names = TRAIN if settings.train_split == "train" else (settings.train_split.lower(),)
    trains = _named(folders, train_names)
    tests = _named(folders, () if settings.test_split is None else (settings.test_split.lower(),))
    tests = tests or _named(folders, TEST)
    validations = _named(folders, VALIDATION)
    if any(folder.name.lower() == "invalid" for folder in folders):  # then valid is a class
        validations = [folder for folder in validations if folder.name.lower() != "valid"]
    if not trains or not (tests or validations):
        loose_trains = trains or _named_about(folders, train_names)
        loose_tests = tests or validations or _named_about(folders, (*TEST, *VALIDATION))
        if loose_trains and loose_tests:
            refuse_classless(root, [*loose_trains, *loose_tests])
            trains, tests = loose_trains, loose_tests
    test = _only(root, tests, "test") or _only(root, validations, "validation")
    train = _only(root, trains, "training")
    if train is None:
        if test is not None:
            raise DataError(
                f"{root} has a folder {test.name!r} but no {settings.train_split!r} next to it: put the training "
                f"classes into {settings.train_split!r}, or rename {test.name!r} if it is a class"
            )
        return SplitFolders(None, None)
    return SplitFolders(train, test, _about_others(root, folders, train, test))


def training_folder(root: Path) -> Path | None:
    """The subfolder of training images.

    Raises:
        DataError: there are several.
    """
    return _only(root, _named(visible_folders(root), TRAIN), "training")


def test_folder(root: Path) -> Path | None:
    """The subfolder of test images; without one, that of validation images.

    Raises:
        DataError: there are several.
    """
    folders = visible_folders(root)
    return _only(root, _named(folders, TEST), "test") or _only(root, _named(folders, VALIDATION), "validation")


def _named(folders: Iterable[Path], names: Sequence[str]) -> list[Path]:
    return [folder for folder in folders if folder.name.lower() in names]


def _named_about(folders: Iterable[Path], names: Sequence[str]) -> list[Path]:
    """The folders with one of the names among the words of theirs."""
    word = re.compile(rf"(.*[{_SEPARATORS}])?({'|'.join(map(re.escape, names))})([{_SEPARATORS}].*)?")
    return [folder for folder in folders if word.fullmatch(folder.name.lower())]


def _only(root: Path, folders: Sequence[Path], split: str) -> Path | None:
    if len(folders) > 1:
        names = ", ".join(repr(folder.name) for folder in folders)
        raise DataError(f"{root} has several folders of {split} images ({names}): expected one; join or rename them")
    return folders[0] if folders else None


def _about_others(root: Path, folders: Sequence[Path], train: Path, test: Path | None) -> tuple[str, ...]:
    """A line about the folders with images that are not read.

    Raises:
        DataError: there are such folders, and the training folder may be a class like them.
    """
    read = [train, test, *_named(folders, (*UNLABELLED, MASKS))]
    left = [folder for folder in folders if folder not in read and has_images(folder)]
    others = [folder for folder in left if folder.name.lower() not in (*TEST, *VALIDATION)]
    if others and (test is None or not has_classes(train)):
        names = ", ".join(repr(folder.name) for folder in others[:3])
        raise DataError(
            f"{root} has a folder {train.name!r} next to {names}: rename {train.name!r} if it is a class; if it holds "
            "the training classes, only a folder of test classes, such as 'test', may be next to it"
        )
    counted = ", ".join(f"{folder.name} ({len(images_below(folder)):,} images)" for folder in left)
    return (f"not read, next to {train.name} and {test.name}: {counted}",) if left and test is not None else ()


def has_classes(folder: Path) -> bool:
    """Whether a subfolder has images."""
    return any(has_images(below) for below in visible_folders(folder) if below.name.lower() not in (*UNLABELLED, MASKS))


def refuse_classless(root: Path, folders: Iterable[Path]) -> None:
    """Raise DataError for folders named like splits that may be classes, since no subfolder of theirs has images."""
    unclear = [folder.name for folder in folders if not has_classes(folder)]
    if unclear:
        raise DataError(
            f"{root / unclear[0]} may be a class or a split: expected classes in 'train' and 'test', or rename the "
            "class (a split contains a folder of images for each class)"
        )


def refuse_splits_in_classes(folders: Iterable[Path]) -> None:
    """Raise DataError for a class folder that contains folders of both training and test images."""
    for folder in folders:
        below = visible_folders(folder)
        trains, tests = _named(below, TRAIN), _named(below, (*TEST, *VALIDATION))
        if trains and tests:
            names = f"{trains[0].name!r} and {tests[0].name!r}"
            raise DataError(
                f"{folder} contains {names}: expected {trains[0].name}/CLASS and {tests[0].name}/CLASS directly in "
                f"data.path (data.path={folder}, if that is the data set)"
            )
