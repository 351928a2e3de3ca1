"""Lists of labels and boxes of a table, with class numbers."""

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
    for row, classes in enumerate(numbers):
        hot[row, classes] = 1
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
    element = inner(table.features[column])
    key = next((key for key in _CLASSES if isinstance(element, dict) and key in element), None)
    feature = inner(element[key]) if key else None
    names, numbers = _numbered(feature, classes, names, f"{name}, column {column!r}")
    starts_and_ends = [np.hstack([box[:, :2], box[:, :2] + box[:, 2:]]) for box in corners]
    return names, [np.column_stack(pair) for pair in zip(starts_and_ends, numbers, strict=True)]


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
    counts = torch.bincount(labels, minlength=classes + 1)
    if counts[classes] < smallest:
        labels[labels == classes] = counts[:classes].argmax()
    return labels


def _boxes_of(cell: Any) -> tuple[list[list[float]], list[Any]]:
    """The boxes of a cell and the class of each: of a dictionary of lists, a list of dictionaries, or of boxes."""
    cells = cell if isinstance(cell, list) else [cell or {}]
    boxes: list[list[float]] = []
    classes: list[Any] = []
    for entry in cells:
        if isinstance(entry, dict):
            entry_boxes: list[Any] = next((entry[key] for key in CORNERS if entry.get(key)), [])
            if entry_boxes and not isinstance(entry_boxes[0], list):
                entry_boxes = [entry_boxes]
            kinds = next((entry[key] for key in _CLASSES if entry.get(key) is not None), ["object"] * len(entry_boxes))
            kinds = kinds if isinstance(kinds, list) else [kinds]
        else:
            entry_boxes, kinds = [entry], ["object"]
        boxes += entry_boxes
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
    places = {name: number for number, name in enumerate(names)}
    unknown = next((value for row in values for value in row if str(value) not in places), None)
    if unknown is not None:
        raise DataError(f"{where} has the class {unknown!r}, which no training image has")
    return names, [[places[str(value)] for value in row] for row in values]
