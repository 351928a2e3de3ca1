"""Splits a data set: assigns each image to a part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from multilevel.recipes.data.images import SourceSplits
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.strata import UNLABELLED, cut_share, limit_rows, random_for
from multilevel.solvers.errors import DataError


@dataclass(frozen=True)
class Rows:
    """Sorted int64 arrays of row numbers: of the training images, and in ``test`` of the test images, if the data set
    has any."""

    pretrain: np.ndarray
    finetune: np.ndarray
    mask: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def divide(sources: SourceSplits, settings: DataSettings) -> Rows:
    """Split a data set: first the test images (unless it has its own), validation, then the limit, then mask learning's
    share.

    Args:
        sources: the data set; only its labels are read.
        settings: the shares, the limit and the seed.

    Raises:
        DataError: only one class, or a class with too few images to split.
    """
    labels = sources.train.labels.numpy()
    groups = None if sources.train.groups is None else sources.train.groups.numpy()
    unlabelled = np.flatnonzero(labels == UNLABELLED)
    labelled = np.flatnonzero(labels != UNLABELLED)
    draw = partial(random_for, settings.split_seed)
    if not sources.class_names:
        limited = limit_rows(labels, unlabelled, settings.limit, draw("limit"))
        return Rows(limited, *[limited[:0]] * 5)
    check_classes(labels[labelled], sources, settings)
    trained = len(training_parts(settings))
    if sources.test is None:
        keep = trained + (settings.validation_share > 0)
        labelled, test = cut_share(labels, labelled, settings.test_share, keep, draw("test"), groups)
    else:
        test = np.arange(len(sources.test))
    labelled, validation = cut_share(labels, labelled, settings.validation_share, trained, draw("validation"), groups)
    limited = limit_rows(labels, np.concatenate([labelled, unlabelled]), settings.limit, draw("limit"))
    if groups is not None and sources.test is None:  # an unlabelled copy of a test image is not trained on, either
        limited = limited[~np.isin(groups[limited], groups[np.concatenate([test, validation])])]
    train = limited[labels[limited] != UNLABELLED]
    check_several_classes(labels[train], sources.class_names, f"data.limit={settings.limit}")
    finetune, mask = cut_share(labels, train, settings.mask_share or 0.0, 1, draw("mask"), groups)
    pretrain = np.sort(np.concatenate([finetune, limited[labels[limited] == UNLABELLED]]))
    return Rows(pretrain, finetune, mask, train, validation, test)


def training_parts(settings: DataSettings) -> list[str]:
    """The parts that training splits the labelled images into."""
    return ["finetune"] if not settings.mask_share else ["finetune", "mask"]


def check_classes(labels: np.ndarray, sources: SourceSplits, settings: DataSettings) -> None:
    """Reject a single class, and a class with too few images for its parts.

    Raises:
        DataError: names the class.
    """
    check_several_classes(labels, sources.class_names, f"data={settings.name}")
    parts = training_parts(settings)
    parts += ["validation"] if settings.validation_share else []
    parts += ["test"] if sources.test is None and settings.test_share else []
    if "test" not in parts and "validation" not in parts:
        return
    present, counts = np.unique(labels, return_counts=True)
    for label, count in zip(present, counts, strict=True):
        if count < len(parts):
            remedy = " or a test split" if sources.test is None else ""
            raise DataError(
                f"class {sources.class_names[label]!r} has {count} images and is split into {', '.join(parts)}: it "
                f"needs at least {len(parts)}; add images{remedy}"
            )


def check_several_classes(labels: np.ndarray, class_names: tuple[str, ...], cause: str) -> None:
    """Reject labels of fewer than two classes.

    Raises:
        DataError: names the class.
    """
    present = np.unique(labels)
    if len(present) < 2:
        names = ", ".join(class_names[label] for label in present) or "none"
        raise DataError(
            f"{cause}: the labelled training images are of one class only ({names}); expected two classes "
            "or more (put images without labels directly into the folder, or into a subfolder 'unlabelled')"
        )
