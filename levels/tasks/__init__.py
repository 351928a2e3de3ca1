"""Downstream tasks, one file each: the loss of the finetuning and mask levels, and the metrics."""

from __future__ import annotations

import sys

from multilevel.levels.tasks.base import Task, TaskData
from multilevel.solvers.registry import discover

#: Every task by the name of its file, which is its name in configuration.
TASKS: dict[str, type[Task]] = discover(sys.modules[__name__], Task)  # type: ignore[type-abstract]

__all__ = ["TASKS", "Task", "TaskData"]
