"""Reads every command line: ``SETTING=VALUE`` arguments, by a dataclass of settings and Hydra's override parser."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multilevel.solvers import SettingError
from multilevel.solvers.ranges import base_type, check, declared, expected

Settings = TypeVar("Settings")
#: Metadata of a field that a command fills from other arguments, not from ``SETTING=VALUE``.
DERIVED = {"derived": True}
DEEPEST = 30  # nested brackets of a value


@dataclass
class NoSettings:
    """A command without settings."""


@dataclass(frozen=True)
class CommandLine(Generic[Settings]):
    """A parsed command line.

    Attributes:
        settings: the command's own.
        words: arguments that are not settings, such as files.
        overrides: the settings of a recipe, as typed.
    """

    settings: Settings
    words: list[str]
    overrides: list[str]


def read(
    command: str, arguments: Sequence[str], settings_class: type[Settings], *, words: bool = False, recipe: bool = True
) -> CommandLine[Settings]:
    """Read a command's arguments.

    Args:
        command: its name, for messages.
        arguments: arguments of the command line.
        settings_class: a dataclass whose fields are the command's own settings.
        words: whether it takes arguments that are not settings. A file or folder that exists counts as one although it
            has ``=`` in its name; with ``recipe``, whose settings may look like it, only if there is a slash before the
            ``=``, or no other word.
        recipe: whether it takes a recipe's settings.

    Raises:
        SettingError: an unknown setting, or a value of the wrong type or out of range.

    >>> @dataclass
    ... class Output:
    ...     output: str = "."
    ...     jobs: int = 1
    >>> read("example", ["RUN", "jobs=3", "mask.ratio=0.5"], Output, words=True)
    CommandLine(settings=Output(output='.', jobs=3), words=['RUN'], overrides=['mask.ratio=0.5'])
    """
    known, texts, plain_words, overrides = settable(settings_class), {}, [], []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if equals and name in known:
            texts[name] = text
        elif words and (not equals or ((not recipe or "/" in name) and exists(argument))):
            plain_words.append(argument)
        elif recipe:
            overrides.append(argument)
        else:
            raise SettingError(name, text if equals else None, f"a setting of {command}: {', '.join(known)}")
    if words and recipe and not plain_words:
        plain_words = [argument for argument in overrides if exists(argument)][:1]
        overrides = [argument for argument in overrides if argument not in plain_words]
    return CommandLine(typed(settings_class, texts), plain_words, overrides)


def exists(path: str) -> bool:
    """Whether a file or folder exists; not for a text that cannot be a path, such as one that is too long."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def typed(settings_class: type[Settings], texts: Mapping[str, str]) -> Settings:
    """Construct a dataclass of settings from fields as typed on a command line.

    Text is taken literally, since a path may have any character; ``A,B`` is a list with or without brackets.

    Raises:
        SettingError: a value of the wrong type or out of range.

    >>> from multilevel.solvers import Neumann
    >>> typed(Neumann, {"terms": "7", "step_size": "1e-2"})
    Neumann(product='reverse', damping=0.0, radius=None, strict=False, terms=7, step_size=0.01, power_iterations=5, \
tolerance=1e-06)
    """
    config: Any = OmegaConf.structured(settings_class)
    kinds = settable(settings_class)
    for name, text in texts.items():
        try:
            value = None if text == "null" else _value(name, text, base_type(kinds[name]))
            OmegaConf.update(config, name, value, merge=False)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise SettingError(name, text, expected(kinds[name])) from error
    settings: Any = OmegaConf.to_object(config)
    check(settings)
    return settings


def _value(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # escaped: OmegaConf would take it for an interpolation
    if "${" in text:
        raise ValueError("an interpolation")
    if get_origin(kind) is not list:
        return _parsed(f"{name}={text}").value()
    elements = text.strip()
    if elements.startswith("[") and elements.endswith("]"):
        elements = elements[1:-1]
    elements = elements.strip().removesuffix(",")
    if not elements.strip():
        raise ValueError("an empty list")
    return _parsed(f"{name}=[{elements}]").value()


def _parsed(override: str) -> Override:
    """Hydra's parse of an override, unless its brackets are nested so deeply that the parser would exceed the stack."""
    if max(accumulate((character in "[{(") - (character in "]})") for character in override), default=0) > DEEPEST:
        raise HydraException(f"nested more than {DEEPEST} deep")
    return OverridesParser.create().parse_override(override)


def parse_override(override: str) -> Override:
    """A recipe's ``SETTING=VALUE`` as Hydra parses it, or SettingError.

    >>> parse_override("output=runs/seed=1").value()
    'runs/seed=1'
    """
    name, _, text = override.partition("=")
    quoted = [f"{name}='{text}'"] if "=" in text and "'" not in text else []  # a folder such as seed=1
    for attempt in (override, *quoted):
        with suppress(HydraException):
            parsed = _parsed(attempt)
            if parsed.key_or_group:
                return parsed
    wish = f"SETTING=VALUE (quote values with spaces or brackets; nested at most {DEEPEST} deep)"
    raise SettingError(name or "command line", text if name and text else override, wish)


def readable(settings_class: Any) -> dict[str, Any]:
    """The declared type of every setting that a command line can set."""
    kinds = declared(settings_class)
    return {field.name: kinds[field.name] for field in fields(settings_class) if "derived" not in field.metadata}


def settable(settings_class: Any, prefix: str = "") -> dict[str, Any]:
    """``readable`` with the settings of nested dataclasses by their full names, such as ``cost.miss``."""
    kinds: dict[str, Any] = {}
    for name, kind in readable(settings_class).items():
        nested = is_dataclass(base_type(kind))
        kinds |= settable(base_type(kind), f"{prefix}{name}.") if nested else {prefix + name: kind}
    return kinds


def field_descriptions(settings_class: Any) -> dict[str, str]:
    """The description of each field under ``Args:`` in the docstrings of a dataclass and its bases, each on one line.

    >>> from multilevel.solvers import Dense
    >>> field_descriptions(Dense)["limit"]
    'largest number of parameters to accept.'
    """
    texts: dict[str, str] = {}
    for base in reversed(settings_class.__mro__):
        texts |= own_descriptions(base)
    return texts


def own_descriptions(settings_class: Any) -> dict[str, str]:
    """``field_descriptions`` from only the docstring of the class itself."""
    docstring = inspect.cleandoc(vars(settings_class).get("__doc__") or "")
    block = re.search(r"^Args:\n((?:(?: +.*)?\n)*)", docstring + "\n", re.M)
    described = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", block[1] if block else "", re.M)
    return {name: " ".join(text.split()) for name, text in described}


def defaults(settings_class: Any) -> Iterator[tuple[str, Any]]:
    """Every setting that a command line can set, with its default; MISSING if it has none."""
    known = readable(settings_class)
    for field in fields(settings_class):
        if field.name in known:
            yield field.name, field.default if field.default_factory is MISSING else field.default_factory()
