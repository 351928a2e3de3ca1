"""Which columns of a table hold masks, lists of labels or boxes, and the latter as class numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from multilevel.recipes.data.columns import described, holds_images, holds_labels
from multilevel.solvers.errors import DataError, SettingError

BOXES_COLUMNS = ("objects", "boxes", "bboxes")
_CORNERS = ("bbox", "bboxes", "boxes", "box")
_CLASSES = ("category", "category_id", "categories", "label", "labels", "class", "class_id")

Names = tuple[str, ...]


def find_mask_column(features: Any, wanted: str | None, image_column: str) -> str | None:
    """The column of masks: the wanted one, otherwise the first of images whose name says so, ``None`` without any.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.mask_column``.
        image_column: that of the images.

    Raises:
        SettingError: no such column, or one of something else.
    """
    images = [name for name, feature in features.items() if holds_images(feature) and name != image_column]
    if wanted is None:
        return next((name for name in images if "mask" in name.lower()), None)
    if wanted not in images:
        raise SettingError("data.mask_column", wanted, described(images, "a column of masks", features))
    return wanted


def find_lists_column(features: Any, wanted: str | None) -> str:
    """The column of lists of labels: the wanted one, otherwise the first of lists of class labels.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.label_column``.

    Raises:
        SettingError: no such column, or none to be found.
    """
    import datasets

    lists = [name for name, feature in features.items() if is_list(feature) and holds_labels(inner(feature))]
    found = next((name for name in lists if isinstance(inner(features[name]), datasets.ClassLabel)), None)
    if wanted is None and found is not None:
        return found
    if wanted is None or wanted not in lists:
        raise SettingError("data.label_column", wanted, described(lists, "a column of lists of labels", features))
    return wanted


def find_boxes_column(features: Any, wanted: str | None) -> str | None:
    """The column of boxes: the wanted one, otherwise ``objects`` or ``boxes``, ``None`` without any.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        wanted: ``data.boxes_column``.

    Raises:
        SettingError: no such column, or one of something else.
    """
    usable = [name for name, feature in features.items() if _is_boxes(feature)]
    if wanted is None:
        return next((name for name in BOXES_COLUMNS if name in usable), None)
    if wanted not in usable:
        expected = described(usable, "a column of boxes (dictionaries with bbox, or lists of 4 numbers)", features)
        raise SettingError("data.boxes_column", wanted, expected)
    return wanted


def read_lists(table: Any, column: str, names: Names | None, name: str) -> tuple[Names, Tensor]:
    """Lists of labels as float32 ``[N, classes]`` of 0 and 1, and the names of the classes.

    Args:
        table: a ``datasets.Dataset``.
        column: its column of lists.
        names: the classes of the training split, ``None`` while reading that one.
        name: what the table is called in messages.

    Raises:
        DataError: a class that the training split lacks, or no class at all.
    """
    values = [cell or [] for cell in table.data.column(column).to_pylist()]
    names, numbers = _numbered(inner(table.features[column]), values, names, f"{name}, column {column!r}")
    if not names:
        raise DataError(f"the lists in column {column!r} of {name} are all empty: expected labels")
    hot = torch.zeros(len(values), len(names))
    for row, some in enumerate(numbers):
        hot[row, some] = 1
    return names, hot


def read_boxes(table: Any, column: str, names: Names | None, name: str) -> tuple[Names, list[np.ndarray]]:
    """Boxes as COCO has them (left, top, width, height) as arrays ``[K, 5]`` of left, top, right, bottom, class.

    The class is that of ``category`` or ``label`` beside ``bbox``; without one every box is an ``object``.

    Args:
        table: a ``datasets.Dataset``.
        column: its column of boxes.
        names: the classes of the training split, ``None`` while reading that one.
        name: what the table is called in messages.

    Raises:
        DataError: a row that has not one class for each box, a box of other than 4 numbers, or a class that the
            training split lacks.
    """
    corners: list[np.ndarray] = []
    classes: list[list[Any]] = []
    for row, cell in enumerate(table.data.column(column).to_pylist()):
        boxes, kinds = _boxes_of(cell)
        if len(kinds) != len(boxes) or any(len(box) != 4 for box in boxes):
            raise DataError(f"row {row} of {name}: expected 4 numbers and one class for each box in {column!r}")
        corners.append(np.array(boxes, dtype=np.float64).reshape(-1, 4))
        classes.append(kinds)
    held = inner(table.features[column])
    key = next((key for key in _CLASSES if isinstance(held, dict) and key in held), None)
    feature = inner(held[key]) if key else None
    names, numbers = _numbered(feature, classes, names, f"{name}, column {column!r}")
    starts_and_ends = [np.hstack([some[:, :2], some[:, :2] + some[:, 2:]]) for some in corners]
    return names, [np.column_stack(one) for one in zip(starts_and_ends, numbers, strict=True)]


def rarest_classes(multilabels: Tensor, smallest: int) -> Tensor:
    """A number for each image with a list of labels, to divide the images by: that of its rarest class.

    A class that would have fewer than ``smallest`` images leaves them to their next one. Images without any class have
    the number of classes; are they fewer, they go with the largest class.

    Args:
        multilabels: float32 ``[N, classes]`` of 0 and 1.
        smallest: images of a number.

    Returns:
        int64 ``[N]``.
    """
    classes = multilabels.shape[1]
    labels = torch.full((len(multilabels),), classes)
    for number in multilabels.sum(0).argsort(stable=True).tolist():
        members = (labels == classes) & (multilabels[:, number] > 0)
        if members.sum() >= smallest:
            labels[members] = number
    found = torch.bincount(labels, minlength=classes + 1)
    if found[classes] < smallest:
        labels[labels == classes] = found[:classes].argmax()
    return labels


def is_list(feature: Any) -> bool:
    """Whether a feature is of lists; `datasets` has several."""
    return isinstance(feature, list) or hasattr(feature, "feature")


def inner(feature: Any) -> Any:
    """What the lists of a feature hold, of nested lists the innermost."""
    while is_list(feature):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return feature


def _is_boxes(feature: Any) -> bool:
    held = inner(feature)
    if isinstance(held, dict):
        return any(key in held for key in _CORNERS)
    return is_list(feature) and str(getattr(held, "dtype", "")).startswith(("float", "int"))


def _boxes_of(cell: Any) -> tuple[list[list[float]], list[Any]]:
    """The boxes of a cell and the class of each: of a dictionary of lists, a list of dictionaries, or of boxes."""
    cells = cell if isinstance(cell, list) else [cell or {}]
    boxes: list[list[float]] = []
    classes: list[Any] = []
    for one in cells:
        if isinstance(one, dict):
            found: list[Any] = next((one[key] for key in _CORNERS if one.get(key)), [])
            found = found if found and isinstance(found[0], list) else [found] * bool(found)
            kinds = next((one[key] for key in _CLASSES if one.get(key) is not None), ["object"] * len(found))
            kinds = kinds if isinstance(kinds, list) else [kinds]
        else:
            found, kinds = [one], ["object"]
        boxes += found
        classes += kinds
    return boxes, classes


def _numbered(feature: Any, values: list[list[Any]], names: Names | None, where: str) -> tuple[Names, list[list[int]]]:
    """Lists of classes as numbers: a class label's own, otherwise the place among the sorted distinct values."""
    if hasattr(feature, "names"):
        names = tuple(feature.names)
        wrong = next((value for row in values for value in row if not 0 <= value < len(names)), None)
        if wrong is not None:
            raise DataError(f"{where} has the class number {wrong}; expected 0 to {len(names) - 1}")
        return names, values
    if names is None:
        names = tuple(str(value) for value in sorted({value for row in values for value in row}))
    places = {name: place for place, name in enumerate(names)}
    unknown = next((value for row in values for value in row if str(value) not in places), None)
    if unknown is not None:
        raise DataError(f"{where} has the class {unknown!r}, which no training image has")
    return names, [[places[str(value)] for value in row] for row in values]
