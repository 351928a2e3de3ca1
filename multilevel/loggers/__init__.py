"""Loggers for a run's metrics, one file each: ``loggers=[tensorboard,mlflow]``, or your own class."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multilevel.loggers.base import Logger
from multilevel.solvers import SettingError
from multilevel.solvers.registry import discover

__all__ = ["Logger", "new_loggers"]


def new_loggers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Logger]:
    """Create loggers by name: one of this package, or ``MODULE.CLASS`` for any importable class.

    Args:
        names: the names in configuration.
        folder: the run's.
        config: all its settings, nested.

    Raises:
        SettingError: a logger does not exist, or a package that it needs is not installed.

    Examples:
        >>> [type(logger).__name__ for logger in new_loggers(["tensorboard"], folder, {})]
        ['TensorBoard']
    """
    return [_class(name)(folder, config) for name in names]


def _class(name: str) -> type[Logger]:
    loggers = discover(sys.modules[__name__], Logger)  # type: ignore[type-abstract]
    if name in loggers:
        return loggers[name]
    module, dot, kind = name.rpartition(".")
    expected = f"some of {', '.join(loggers)}, or MODULE.CLASS, an importable multilevel.loggers.Logger"
    try:
        logger = getattr(importlib.import_module(module), kind) if dot else None
    except Exception as error:  # a user's file can raise anything
        raise SettingError("loggers", name, f"{expected} ({type(error).__name__}: {error})") from error
    if not (isinstance(logger, type) and issubclass(logger, Logger)):
        raise SettingError("loggers", name, expected)
    return logger
