"""Finds the columns of a table with images, labels, masks, lists of labels or boxes, and reads labels as class
numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from multilevel.solvers.errors import DataError, SettingError

BOXES_COLUMNS = ("objects", "boxes", "bboxes")
CORNERS = ("bbox", "bboxes", "boxes", "box")
#: Usual names of columns of labels, in lower case.
LABELS = ("label", "labels", "class", "class_name", "class_id", "category", "target")
MOST_CLASSES = 0.5  # of the rows: a column with more different values holds texts or numbers, not classes
FEW_CLASSES = 10  # are classes in a table of any length
_CLASSES = ("category", "category_id", "categories", "label", "labels", "class", "class_id")

Names = tuple[str, ...]


def find_image_column(features: Any, setting: str | None) -> str:
    """The column of images: the wanted one, otherwise the first whose name does not suggest a mask.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        setting: ``data.image_column``.

    Raises:
        SettingError: the column does not exist or contains something else, or none was found.
    """
    images = [name for name, feature in features.items() if holds_images(feature)]
    default = next((name for name in images if "mask" not in name.lower()), None)
    return _checked("image", setting or default, images, "a column of images", features)


def find_label_column(features: Any, setting: str | None) -> str | None:
    """The column of labels: the wanted one, otherwise the first column of class labels, otherwise one with a usual name
    such as ``label``; ``None`` if there is none.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        setting: ``data.label_column``.

    Raises:
        SettingError: the column does not exist, or contains neither class labels, whole numbers nor text; so does a
            column with a usual name.
    """
    import datasets

    labels = [name for name, feature in features.items() if holds_labels(feature)]
    if setting is None:
        class_labels = (name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel))
        by_name = {name.lower(): name for name, feature in features.items() if isinstance(feature, datasets.Value)}
        usual = (by_name[name] for name in LABELS if name in by_name)
        setting = next(class_labels, None) or next(usual, None)
        if setting is None:
            return None
    return _checked("label", setting, labels, "a column of labels", features)


def about_labels(features: Any, column: str | None, setting: str | None) -> tuple[str, ...]:
    """A line about the column that the labels are from, where ``data.label_column`` names none and others exist."""
    others = [name for name, feature in features.items() if holds_labels(feature) and name != column]
    if setting is not None or not others:
        return ()
    chosen = "no column of labels is known" if column is None else f"labels are from the column {column!r}"
    return (f"{chosen}; data.label_column can name another: {', '.join(others)}",)


def find_mask_column(features: Any, setting: str | None, image_column: str) -> str | None:
    """The column of masks: the wanted one, otherwise the first image column whose name suggests masks; ``None`` if
    there is none.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        setting: ``data.mask_column``.
        image_column: the column of the images.

    Raises:
        SettingError: no such column, or one of something else.
    """
    images = [name for name, feature in features.items() if holds_images(feature) and name != image_column]
    if setting is None:
        return next((name for name in images if "mask" in name.lower()), None)
    return _checked("mask", setting, images, "a column of masks", features)


def find_lists_column(features: Any, setting: str | None) -> str:
    """The column of lists of labels: the wanted one, otherwise the first column of lists of class labels.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        setting: ``data.label_column``.

    Raises:
        SettingError: the column does not exist, or none was found.
    """
    import datasets

    lists = [name for name, feature in features.items() if is_list(feature) and holds_labels(inner(feature))]
    default = next((name for name in lists if isinstance(inner(features[name]), datasets.ClassLabel)), None)
    return _checked("label", setting or default, lists, "a column of lists of labels", features)


def find_boxes_column(features: Any, setting: str | None) -> str | None:
    """The column of boxes: the wanted one, otherwise ``objects`` or ``boxes``; ``None`` if there is none.

    Args:
        features: the ``features`` of a ``datasets.Dataset``.
        setting: ``data.boxes_column``.

    Raises:
        SettingError: no such column, or one of something else.
    """
    usable = [name for name, feature in features.items() if _holds_boxes(feature)]
    if setting is None:
        return next((name for name in BOXES_COLUMNS if name in usable), None)
    expected = "a column of boxes (dictionaries with bbox, or lists of 4 numbers)"
    return _checked("boxes", setting, usable, expected, features)


def _checked(role: str, column: str | None, usable: list[str], expected: str, features: Any) -> str:
    """Return the column if it is usable; the error lists the usable columns, or all columns if none is usable."""
    if column is None or column not in usable:
        columns = f": {', '.join(usable)}" if usable else f"; the table has none, only: {', '.join(features)}"
        raise SettingError(f"data.{role}_column", column, expected + columns)
    return column


def holds_images(feature: Any) -> bool:
    """Whether a feature contains images; files written without ``datasets`` have bare bytes instead."""
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def holds_labels(feature: Any) -> bool:
    """Whether a feature contains class labels, whole numbers or text."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return True
    kinds = ("int", "uint", "string", "large_string", "bool")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def is_list(feature: Any) -> bool:
    """Whether a feature contains lists, for which `datasets` has several types."""
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


def read_labels(table: Any, column: str, class_names: Names | None, name: str) -> tuple[Names, Tensor]:
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
        DataError: a row has no label, or one that is not in the training split.
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
    if is_class_label and class_names is None:
        return tuple(feature.names), torch.tensor(values, dtype=torch.int64)
    texts = [feature.names[value] if is_class_label else str(value) for value in values]
    if class_names is None:
        distinct = sorted(set(values))
        if len(distinct) > max(FEW_CLASSES, MOST_CLASSES * len(values)):
            raise DataError(
                f"{name} has {len(distinct):,} different values in {len(values):,} rows of column {column!r}, too many "
                "for classes; expected a column of labels: data.label_column"
            )
        class_names = tuple(str(value) for value in distinct)
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    unknown = next((text for text in texts if text not in numbers), None)
    if unknown is not None:
        raise DataError(f"{name} has the label {unknown!r} in column {column!r}, which no training image has")
    return class_names, torch.tensor([numbers[text] for text in texts], dtype=torch.int64)


def read_lists(table: Any, column: str, names: Names | None, name: str) -> tuple[Names, Tensor]:
    """Lists of labels as float32 ``[N, classes]`` of 0 and 1, and the names of the classes.

    Args:
        table: a ``datasets.Dataset``.
        column: its column of lists.
        names: the classes of the training split, ``None`` while reading that one.
        name: what the table is called in messages.

    Raises:
        DataError: a class that is not in the training split, or no class at all.
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
        DataError: a row without exactly one class for each box, a box of other than 4 numbers, or a class that is not
            in the training split.
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
        own = tuple(feature.names)
        wrong = next((value for row in values for value in row if not 0 <= value < len(own)), None)
        if wrong is not None:
            raise DataError(f"{where} has the class number {wrong}; expected 0 to {len(own) - 1}")
        if names is None or names == own:
            return own, values
        values = [[own[value] for value in row] for row in values]
    if names is None:
        names = tuple(str(value) for value in sorted({value for row in values for value in row}))
    places = {name: number for number, name in enumerate(names)}
    unknown = next((value for row in values for value in row if str(value) not in places), None)
    if unknown is not None:
        raise DataError(f"{where} has the class {unknown!r}, which no training image has")
    return names, [[places[str(value)] for value in row] for row in values]
