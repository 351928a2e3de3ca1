"""Joins tables whose class labels are numbered differently."""

from __future__ import annotations

from typing import Any

from multilevel.recipes.data import columns
from multilevel.solvers.errors import DataError


def class_labels(features: Any, where: str = "") -> dict[str, columns.Names]:
    """The names of the classes of every column, or part of a column, with class labels."""
    names: dict[str, columns.Names] = {}
    for key, feature in features.items():
        element = columns.inner(feature)
        if hasattr(element, "names"):
            names[where + key] = tuple(element.names)
        elif isinstance(element, dict):
            names |= class_labels(element, f"{where}{key}.")
    return names


def join_by_class_names(tables: list[Any], where: str) -> Any:
    """Join tables whose class labels are numbered differently, by the names of their classes.

    Args:
        tables: ``datasets.Dataset`` of the same columns.
        where: the tables' place, for messages.

    Raises:
        DataError: labels in lists or boxes are numbered differently, or a column has class names in some tables and
            numbers in others.
    """
    import datasets

    every = [class_labels(table.features) for table in tables]
    for column in dict.fromkeys(name for names in every for name in names):
        if len({names.get(column) for names in every}) == 1:
            continue
        if any(not _holds_names(table.features.get(column)) for table in tables):
            raise DataError(
                f"{where} has files whose class names of {column!r} differ, some without names or in lists: write all "
                "with the same class names, in the same order"
            )
        texts = [_class_texts(table, column) for table in tables]
        known = (names.get(column, ()) for names in every)
        joined = list(dict.fromkeys([name for names in (*known, *texts) for name in names if name is not None]))
        feature, numbers = datasets.ClassLabel(names=joined), {name: number for number, name in enumerate(joined)}
        for position, (table, of_table) in enumerate(zip(tables, texts, strict=True)):
            values = [None if text is None else numbers[text] for text in of_table]
            tables[position] = table.remove_columns(column).add_column(column, values, feature=feature)
    try:
        return datasets.concatenate_datasets(tables)
    except ValueError as error:
        raise DataError(f"{where} has files with different columns ({' '.join(str(error).split())})") from error


def _holds_names(feature: Any) -> bool:
    return hasattr(feature, "names") or str(getattr(feature, "dtype", "")) in ("string", "large_string")


def _class_texts(table: Any, column: str) -> list[str | None]:
    """The class of each row by name; ``None`` without one."""
    names = getattr(table.features[column], "names", None)
    values = table.data.column(column).to_pylist()
    if names is None:
        return values
    return [None if value is None or value < 0 else names[value] for value in values]
