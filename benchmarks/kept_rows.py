"""Rows of a benchmark, kept in a file of JSON lines from which a later run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

Row = dict[str, Any]
Task = TypeVar("Task")


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_row(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def completed(
    path: Path, tasks: Iterable[Task], task_of: Callable[[Row], Task], measure: Callable[[Task], Row]
) -> list[Row]:
    """The rows of a file after those of missing tasks have been measured, each kept at once.

    Args:
        path: the file.
        tasks: the tasks that must have a row.
        task_of: the task of a row.
        measure: the row of a task.
    """
    rows = read_rows(path)
    done = set(map(task_of, rows))
    for task in tqdm([task for task in tasks if task not in done], unit="row", disable=None):
        rows.append(measure(task))
        append_row(path, rows[-1])
    return rows
