"""Finds the columns of a table with images, labels, masks, lists of labels or boxes, and reads labels as class
numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multilevel.solvers.errors import DataError, SettingError

BOXES_COLUMNS = ("objects", "boxes", "bboxes")
CORNERS = ("bbox", "bboxes", "boxes", "box")


def find_image_column(features: Any, wanted: str | None) -> str:
    """The column of images: the wanted one, otherwise the first whose name does not suggest a mask.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.image_column``.

    Raises:
        SettingError: the column does not exist or holds something else, or none was found.
    """
    images = [name for name, feature in features.items() if holds_images(feature)]
    default = next((name for name in images if "mask" not in name.lower()), None)
    return _checked("image", wanted or default, images, "a column of images", features)


def find_label_column(features: Any, wanted: str | None) -> str | None:
    """The column of labels: the wanted one, otherwise the first column of class labels; ``None`` if there is none.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.label_column``.

    Raises:
        SettingError: the column does not exist, or holds neither class labels, whole numbers nor text.
    """
    import datasets

    if wanted is None:
        class_labels = (name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel))
        return next(class_labels, None)
    labels = [name for name, feature in features.items() if holds_labels(feature)]
    return _checked("label", wanted, labels, "a column of labels", features)


def find_mask_column(features: Any, wanted: str | None, image_column: str) -> str | None:
    """The column of masks: the wanted one, otherwise the first image column whose name suggests masks; ``None`` if
    there is none.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.mask_column``.
        image_column: the column of the images.

    Raises:
        SettingError: no such column, or one of something else.
    """
    images = [name for name, feature in features.items() if holds_images(feature) and name != image_column]
    if wanted is None:
        return next((name for name in images if "mask" in name.lower()), None)
    return _checked("mask", wanted, images, "a column of masks", features)


def find_lists_column(features: Any, wanted: str | None) -> str:
    """The column of lists of labels: the wanted one, otherwise the first column of lists of class labels.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.label_column``.

    Raises:
        SettingError: the column does not exist, or none was found.
    """
    import datasets

    lists = [name for name, feature in features.items() if is_list(feature) and holds_labels(inner(feature))]
    default = next((name for name in lists if isinstance(inner(features[name]), datasets.ClassLabel)), None)
    return _checked("label", wanted or default, lists, "a column of lists of labels", features)


def find_boxes_column(features: Any, wanted: str | None) -> str | None:
    """The column of boxes: the wanted one, otherwise ``objects`` or ``boxes``; ``None`` if there is none.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.boxes_column``.

    Raises:
        SettingError: no such column, or one of something else.
    """
    usable = [name for name, feature in features.items() if _holds_boxes(feature)]
    if wanted is None:
        return next((name for name in BOXES_COLUMNS if name in usable), None)
    expected = "a column of boxes (dictionaries with bbox, or lists of 4 numbers)"
    return _checked("boxes", wanted, usable, expected, features)


def _checked(role: str, column: str | None, usable: list[str], expected: str, features: Any) -> str:
    """Return the column if it is usable; the error lists the usable columns, or all columns if none is usable."""
    if column is None or column not in usable:
        columns = f": {', '.join(usable)}" if usable else f"; the table has none, only: {', '.join(features)}"
        raise SettingError(f"data.{role}_column", column, expected + columns)
    return column


def holds_images(feature: Any) -> bool:
    """Whether a feature holds images; files written without ``datasets`` have bare bytes instead."""
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def holds_labels(feature: Any) -> bool:
    """Whether a feature holds class labels, whole numbers or text."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return True
    kinds = ("int", "uint", "string", "large_string", "bool")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def is_list(feature: Any) -> bool:
    """Whether a feature holds lists, for which `datasets` has several types."""
    return isinstance(feature, list) or hasattr(feature, "feature")


def inner(feature: Any) -> Any:
    """The element type of a feature's lists; for nested lists, of the innermost."""
    while is_list(feature):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return feature


def _holds_boxes(feature: Any) -> bool:
    element = inner(feature)
    if isinstance(element, dict):
        return any(key in element for key in CORNERS)
    return is_list(feature) and str(getattr(element, "dtype", "")).startswith(("float", "int"))


def read_labels(
    table: Any, column: str, class_names: tuple[str, ...] | None, name: str
) -> tuple[tuple[str, ...], Tensor]:
    """Read the labels of a split as class numbers.

    Args:
        table: a ``datasets.Dataset``.
        column: its column of labels.
        class_names: the classes of the training split, ``None`` while reading the training split. For whole numbers and
            text the classes are its sorted distinct values.
        name: the table's name in messages.

    Returns:
        The names of the classes, and an int64 tensor ``[N]``.

    Raises:
        DataError: a row has no label, or one that the training split lacks.
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
