"""Which column of a table holds the images and which the labels, and the labels as class numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multilevel.solvers.errors import DataError, SettingError


def find_image_column(features: Any, wanted: str | None) -> str:
    """The column of images: the wanted one, otherwise the first whose name is not that of a mask.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.image_column``.

    Raises:
        SettingError: no such column, a column of something else, or none to be found.
    """
    images = [name for name, feature in features.items() if holds_images(feature)]
    if wanted is not None:
        if wanted not in images:
            raise SettingError("data.image_column", wanted, described(images, "a column of images", features))
        return wanted
    found = next((name for name in images if "mask" not in name.lower()), None)
    if found is None:
        raise SettingError("data.image_column", wanted, described(images, "a column of images", features))
    return found


def find_label_column(features: Any, wanted: str | None) -> str | None:
    """The column of labels: the wanted one, otherwise the first of class labels, ``None`` without any.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.label_column``.

    Raises:
        SettingError: no such column, or one that holds neither class labels, whole numbers nor text.
    """
    import datasets

    if wanted is None:
        found = (name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel))
        return next(found, None)
    labels = [name for name, feature in features.items() if holds_labels(feature)]
    if wanted not in labels:
        raise SettingError("data.label_column", wanted, described(labels, "a column of labels", features))
    return wanted


def described(usable: list[str], what: str, features: Any) -> str:
    """What would do, for a message: the usable columns, or all of them where none is."""
    if usable:
        return f"{what}: {', '.join(usable)}"
    return f"{what}; none of the columns is one: {', '.join(features)}"


def holds_images(feature: Any) -> bool:
    """Whether a feature is of images; files written without ``datasets`` have bare bytes instead."""
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def holds_labels(feature: Any) -> bool:
    """Whether a feature is of class labels, whole numbers or text."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return True
    kinds = ("int", "uint", "string", "large_string", "bool")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def read_labels(
    table: Any, column: str, class_names: tuple[str, ...] | None, name: str
) -> tuple[tuple[str, ...], Tensor]:
    """The labels of a split as class numbers.

    Args:
        table: a ``datasets.Dataset``.
        column: its column of labels.
        class_names: the classes of the training split, ``None`` while reading that one. Whole numbers
            and text have the sorted distinct values of the training split as classes.
        name: what the table is called in messages.

    Returns:
        The names of the classes, and an int64 tensor ``[N]``.

    Raises:
        DataError: a row without a label, or with one that the training split lacks.
    """
    import datasets

    feature = table.features[column]
    values = table.data.column(column).to_pylist()
    is_class_label = isinstance(feature, datasets.ClassLabel)
    for row, value in enumerate(values):
        if value is None or (is_class_label and value < 0):
            raise DataError(
                f"row {row} of {name} has no label in column {column!r} (got {value}); expected a split "
                "with labels: set data.train_split, data.test_split or data.label_column"
            )
    if is_class_label:
        return tuple(feature.names), torch.tensor(values, dtype=torch.int64)
    texts = [str(value) for value in values]
    if class_names is None:
        class_names = tuple(str(value) for value in sorted(set(values)))
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    unknown = next((text for text in texts if text not in numbers), None)
    if unknown is not None:
        raise DataError(f"{name} has the label {unknown!r} in column {column!r}, which no training image has")
    return class_names, torch.tensor([numbers[text] for text in texts], dtype=torch.int64)
