"""Discovers the classes in a package's files, so that a new solver or mask policy takes one new file."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

from multilevel.solvers.extensions import extend, load_module
from multilevel.solvers.ranges import require

Base = TypeVar("Base")


def discover(package: ModuleType, base: type[Base]) -> dict[str, type[Base]]:
    """Concrete subclasses of ``base`` defined in the package's modules, including the user's own
    (``extensions.extend``), each under its module's name."""
    extend(package.__path__, package.__name__)
    classes: dict[str, type[Base]] = {}
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda entry: entry.name):
        module = load_module(f"{package.__name__}.{entry.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if member.__module__ == module.__name__ and issubclass(member, base) and not inspect.isabstract(member):
                classes[entry.name] = member
    return classes


def chosen(setting: str, offers: Mapping[str, type[Base]], name: str) -> type[Base]:
    """The class named ``name`` in ``offers``.

    Raises:
        SettingError: the name does not exist; the message names ``setting``.
    """
    require(setting, name, name in offers, f"one of {', '.join(offers)}")
    return offers[name]


def build(setting: str, offers: Mapping[str, type[Base]], name: str, options: Mapping[str, Any]) -> Base:
    """Construct the class named ``name`` in ``offers``.

    Raises:
        SettingError: the name does not exist, or the class has no such option; the message names ``setting``.
    """
    kind = chosen(setting, offers, name)
    known = list(inspect.signature(kind).parameters)
    for option, value in options.items():
        require(f"{setting}.{option}", value, option in known, f"a setting of {name}: {', '.join(known) or 'none'}")
    return kind(**options)
