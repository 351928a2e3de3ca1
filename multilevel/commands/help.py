"""Builds a command's ``--help`` from its module's docstring and the settings that its dataclasses declare."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

from multilevel.commands.overview import COMMANDS, text_of
from multilevel.configuration.command_line import NoSettings, defaults, field_descriptions, readable
from multilevel.configuration.composition import choices, compose_config
from multilevel.recipes.base import recipe_class
from multilevel.recipes.evaluation import PROTOCOLS, EvaluationSettings
from multilevel.recipes.settings import LowerLevelSettings
from multilevel.solvers import SOLVERS
from multilevel.solvers.ranges import KINDS, base_type, choices_of, expected

GROUPS = ("recipe", "data", "model", "task", "experiment")
WIDTH, COLUMN = 120, 34


def help_for(command: str, overrides: Sequence[str] = ()) -> str:
    """The help text: what a command does, and every setting with its default, description and range.

    Args:
        command: its name.
        overrides: for ``train``: ``recipe=NAME`` and any other overrides that change the defaults shown.

    Raises:
        SettingError: an override that cannot be composed.
    """
    first, _, details = text_of(command).partition("\n")
    parts = [first.partition(": ")[0], details.strip("\n")]
    if settings := list(entries(settings_of(command))):
        parts.append("\n".join(["Settings", *settings]))
    if command == "train":
        parts += _recipe(overrides)
    if command == "evaluate":
        parts += _evaluation()
    if command == "monitor":
        parts.append(importlib.import_module("multilevel.recipes.export.drift").RULE)
    return "\n\n".join(parts)


def settings_of(command: str) -> Any:
    """The dataclass of a command's own settings: ``SETTINGS`` of its module."""
    return getattr(importlib.import_module(f"multilevel.{COMMANDS[command]}"), "SETTINGS", NoSettings)


def entries(settings_class: Any, prefix: str = "", values: Any = None, skip: Sequence[str] = ()) -> Iterator[str]:
    """An entry for each setting of a dataclass, and of those nested in it.

    Args:
        settings_class: the dataclass.
        prefix: prefix of the settings' names.
        values: their values, as a nested dictionary; None takes the dataclass's defaults.
        skip: fields to omit.
    """
    texts, kinds = field_descriptions(settings_class), readable(settings_class)
    for name, default in defaults(settings_class):
        kind = kinds[name]
        value = default if values is None else values.get(name, default)
        if name not in skip and is_dataclass(base_type(kind)):
            yield from entries(base_type(kind), f"{prefix}{name}.", value if isinstance(value, dict) else None)
        elif name not in skip:
            yield _entry(f"{prefix}{name}{_assigned(value)}", _with_range(texts.get(name, ""), kind))


def _with_range(text: str, kind: Any) -> str:
    """A description, with the declared range unless the description already gives it."""
    text = text.replace("``", "").replace("None", "null")
    words = expected(kind)
    named = [name for _, name in KINDS.values()]
    plain = not choices_of(kind) and (base_type(kind) not in (int, float) or words.removesuffix(", or null") in named)
    listed = bool(choices_of(kind)) and all(str(choice) in text for choice in choices_of(kind))
    return text if plain or listed else f"{text} ({words})".strip()


def _entry(setting: str, text: str) -> str:
    start = f"  {setting:<{COLUMN}}  "
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * (COLUMN + 4)) or start.rstrip()


def _assigned(value: Any) -> str:
    """A default as it would be typed; empty if there is none or it is long."""
    if isinstance(value, dict):
        value = value.get("name")
    if isinstance(value, list):
        value = f"[{','.join(map(str, value))}]"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return "" if value is MISSING or len(text) > COLUMN else f"={text}"


def _recipe(overrides: Sequence[str]) -> list[str]:
    """The settings of a recipe with their defaults, and the available choices."""
    values: Any = OmegaConf.to_container(compose_config(overrides))
    kind = recipe_class(values["recipe"]).settings_class
    texts = [f"Settings of recipe={values['recipe']}", *entries(kind, "", values, ("evaluation", "levels"))]
    if "evaluation" in values:
        texts.append(_entry("evaluation.SETTING", "see multilevel evaluate --help"))
    levels = f"Settings of its levels, where LEVEL is one of {', '.join(values['levels'])}"
    groups = [f"  {group + '=':<14}{', '.join(choices(group))}" for group in GROUPS]
    sections = [texts, [levels, *entries(LowerLevelSettings, "levels.LEVEL.")], ["Choices", *groups, *_solvers()]]
    return ["\n".join(section) for section in sections]


def _solvers() -> Iterator[str]:
    for name, solver in SOLVERS.items():
        yield f"  solver={name}: {inspect.getdoc(importlib.import_module(solver.__module__))}"
        yield f"      {', '.join(option.name for option in fields(solver))}"  # type: ignore[arg-type]


def _evaluation() -> list[str]:
    protocols = [f"  {name}: {inspect.getdoc(kind)}".partition("\n\n")[0] for name, kind in PROTOCOLS.items()]
    settings = entries(EvaluationSettings, "evaluation.")
    return ["\n".join(["Settings", *settings]), "\n".join(["Protocols", *protocols])]
