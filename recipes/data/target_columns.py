"""Reads lists of labels and boxes from a table, with class numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from multilevel.recipes.data.columns import CORNERS, inner
from multilevel.solvers.errors import DataError

_CLASSES = ("category", "category_id", "categories", "label", "labels", "class", "class_id")

Names = tuple[str, ...]


def read_lists(table: Any, column: str, names: Names | None, name: str) -> tuple[Names, Tensor]:
    """Read lists of labels as float32 ``[N, classes]`` of 0 and 1, and the names of the classes.

    Args:
        table: a ``datasets.Dataset``.
        column: its column of lists.
        names: the classes of the training split, ``None`` while reading that one.
        name: the table's name in messages.

    Raises:
        DataError: the training split lacks a class, or there is no class at all.
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
    """Read COCO boxes (left, top, width, height) as arrays ``[K, 5]`` of left, top, right, bottom, class.

    The class comes from ``category`` or ``label`` next to ``bbox``; without either, every box is an ``object``.

    Args:
        table: a ``datasets.Dataset``.
        column: its column of boxes.
        names: the classes of the training split, ``None`` while reading that one.
        name: the table's name in messages.

    Raises:
        DataError: a row without exactly one class per box, a box without exactly 4 numbers, or a class that the
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
    """The rarest class of each image with a list of labels, to split the images by.

    A class with fewer than ``smallest`` images passes them to their next rarest class. Images without any class get the
    number of classes, or the largest class if there are fewer than ``smallest`` such images.

    Args:
        multilabels: float32 ``[N, classes]`` of 0 and 1.
        smallest: smallest number of images for each result.

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


def _boxes_of(cell: Any) -> tuple[list[list[float]], list[Any]]:
    """The boxes of a cell and their classes, from a dictionary of lists, a list of dictionaries, or a list of boxes."""
    cells = cell if isinstance(cell, list) else [cell or {}]
    boxes: list[list[float]] = []
    classes: list[Any] = []
    for one in cells:
        if isinstance(one, dict):
            found: list[Any] = next((one[key] for key in CORNERS if one.get(key)), [])
            found = found if found and isinstance(found[0], list) else [found] * bool(found)
            kinds = next((one[key] for key in _CLASSES if one.get(key) is not None), ["object"] * len(found))
            kinds = kinds if isinstance(kinds, list) else [kinds]
        else:
            found, kinds = [one], ["object"]
        boxes += found
        classes += kinds
    return boxes, classes


def _numbered(feature: Any, values: list[list[Any]], names: Names | None, where: str) -> tuple[Names, list[list[int]]]:
    """Convert lists of classes to numbers: a class label's own, otherwise the index among the sorted distinct
    values."""
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
