"""Composes settings from the command line: Hydra's overrides, a solver per level, and a one-line error for each
mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, fields, make_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError

from multilevel.configuration.command_line import parse_override, readable
from multilevel.recipes.base import Recipe, recipe_class
from multilevel.recipes.data import DataSettings
from multilevel.recipes.evaluation import EvaluationSettings
from multilevel.recipes.settings import RunSettings
from multilevel.solvers import SOLVERS, SettingError
from multilevel.solvers.extensions import VARIABLE, folders
from multilevel.solvers.ranges import expected

CONFIG_MODULE = "multilevel.recipes.config"
#: The names of types in OmegaConf's errors.
TYPES: dict[str, type] = {"Float": float, "float": float, "Integer": int, "int": int, "bool": bool}
_ABSENT = object()
_LEVEL_SOLVER = re.compile(r"(levels\.\w+\.solver)(\..+)?")


def choices(group: str) -> list[str]:
    """The choices of a configuration group (data, evaluation, experiment, model, recipe, solver, task)."""
    if group == "solver":
        return list(SOLVERS)
    if group == "evaluation":
        return ["protocols"]
    group_folders = [config.joinpath(group) for config in (resources.files(CONFIG_MODULE), *user_configurations())]
    files = [file.name for folder in group_folders if folder.is_dir() for file in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def user_configurations() -> list[Path]:
    """The user's own folders of configuration files."""
    configs = (folder / "recipes" / "config" for folder in folders())
    return [config for config in configs if config.is_dir()]


class UserConfigurations(SearchPathPlugin):
    """Makes Hydra search the user's folders for configuration files, after the project's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for config in user_configurations():
            search_path.append("multilevel", f"file://{config}")


Plugins.instance().register(UserConfigurations)


@contextmanager
def users_files_read() -> Iterator[None]:
    """Within the block or decorated function, a user's file that is not YAML raises SettingError."""
    try:
        yield
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{mark.name}:{mark.line + 1}" if mark else "a configuration file"
        raise SettingError(VARIABLE, where, f"YAML ({error.problem})") from None


@users_files_read()
def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose command-line overrides into a configuration, with interpolations resolved.

    Args:
        overrides: settings as typed, as in ``mask.ratio=0.5`` or ``levels.pretrain.solver=neumann``.

    Raises:
        SettingError: an unknown setting or choice, a value of the wrong type, or a user's file that is not YAML.

    Examples:
        >>> config = compose_config(["recipe=hyper_cleaning", "steps=10"])
        >>> config.recipe, config.steps
        ('hyper_cleaning', 10)
    """
    register_solvers()
    expanded = expand(overrides)
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return located(resolved(compose("config", overrides=expanded)))
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, lambda setting: _value(setting, expanded), overrides) from None


def resolved(config: DictConfig) -> DictConfig:
    """A configuration with its interpolations resolved and its type checks removed."""
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[return-value]


def located(config: DictConfig) -> DictConfig:
    """A configuration whose folders of images are absolute paths, so that they name the same folders everywhere."""
    for setting in ("data.path", "data.unlabelled"):
        if path := OmegaConf.select(config, setting):
            OmegaConf.update(config, setting, str(Path(str(path)).expanduser().absolute()))
    return config


def build_recipe(config: DictConfig) -> Recipe:
    """Construct the recipe that a configuration names.

    Raises:
        SettingError: a setting that the recipe does not have, or an unusable value.
        DataError: data that cannot be used.

    Examples:
        >>> recipe = build_recipe(compose_config(["recipe=hyper_cleaning"]))
        >>> recipe.graph.names
        ('classify', 'clean')
    """
    recipe = recipe_class(config.recipe)
    return recipe(typed_settings(config, recipe.settings_class))


def typed_settings(config: DictConfig, settings_class: type[RunSettings]) -> RunSettings:
    """A configuration as the dataclass of its recipe.

    Raises:
        SettingError: an unknown setting, or a value of the wrong type or out of range.
    """
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings_class), config))
    except OmegaConfBaseException as error:
        recipe = [f"recipe={config.recipe}"]
        raise _explained(error, lambda setting: _plain_value(config, setting), recipe) from None
    assert isinstance(settings, RunSettings)
    return settings


def changed(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A stored configuration with some values replaced (``data.path=...``, ``evaluation.max_images=1000``).

    Raises:
        SettingError: a setting is missing from the configuration.
    """
    result = config.copy()
    for override in map(parse_override, overrides):
        name = override.key_or_group
        if OmegaConf.select(config, name, default=_ABSENT) is _ABSENT:
            raise SettingError(name, _value(name, overrides), _nearest(name, config))
        if OmegaConf.is_dict(OmegaConf.select(config, name)) and not isinstance(override.value(), dict):
            raise SettingError(name, _value(name, overrides), f"{name}.SETTING=VALUE: a run keeps its {name}")
        OmegaConf.update(result, name, override.value())
    return result


def with_groups(config: DictConfig, overrides: Sequence[str], groups: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """A stored configuration in which whole groups are replaced (``data=cifar100 data.path=DIR``).

    Args:
        config: the stored one.
        overrides: overrides from the command line.
        groups: groups that may be replaced.

    Returns:
        The configuration, and the remaining overrides: those of groups that are not replaced.

    Raises:
        SettingError: an unknown choice or setting, or a value of the wrong type.
    """
    names = {text: parse_override(text).key_or_group for text in overrides}
    replaced = [group for group in groups if group in names.values()]
    used = [text for text in overrides if names[text].partition(".")[0] in replaced]
    result = config.copy()
    if replaced:
        composed = compose_config(used)
        for group in replaced:
            result[group] = composed[group]
    return result, [text for text in overrides if text not in used]


def swept(overrides: Sequence[str]) -> list[str]:
    """The settings for which the overrides list several values."""
    return [override.get_key_element() for override in map(parse_override, overrides) if override.is_sweep_override()]


def register_solvers() -> None:
    """Register every solver as a choice of the group ``solver``, with its fields as typed settings, and the settings of
    the evaluation and of every data set."""
    store = ConfigStore.instance()
    for name, solver in SOLVERS.items():
        named = [("name", str, field(default=name, kw_only=True))]
        store.store(name=name, group="solver", node=make_dataclass(solver.__name__, named, bases=(solver,)))
    store.store(name="protocols", group="evaluation", node=EvaluationSettings)
    store.store(name="settings", group="data", node=DataSettings)


def expand(overrides: Sequence[str]) -> list[str]:
    """Expand overrides into Hydra's own.

    ``init=...`` without a model takes the sizes of the checkpoint. ``levels.X.solver=NAME`` becomes a choice of the
    group solver for that level, so that its options can follow in the same command; ``levels.X.solver.OPTION=...`` by
    itself starts from the solver of all levels.

    Raises:
        SettingError: an unparsable override, or an unknown choice.
    """
    parsed = [parse_override(text) for text in overrides]
    names: dict[str, str] = {}  # of the levels with a separate solver
    expanded: list[str] = []
    for override in parsed:
        level = _LEVEL_SOLVER.fullmatch(override.key_or_group)
        if level and level[2] is None:
            _check_choice(level[1], "solver", override)
            if override.is_sweep_override():
                raise SettingError(
                    level[1],
                    str(override.input_line).partition("=")[2],
                    "one solver; solver=A,B with --multirun sweeps over the solver of all levels",
                )
            names[level[1]] = override.get_value_element_as_str()
        else:
            expanded.append(str(override.input_line))
            _check_choice(override.key_or_group, override.key_or_group, override)
    shared = [override for override in parsed if override.key_or_group.startswith("solver.")]
    for override in parsed:
        level = _LEVEL_SOLVER.fullmatch(override.key_or_group)
        if level and level[1] not in names:
            names[level[1]] = _shared_solver(level[1], parsed)
            expanded = [f"{level[1]}.{str(option.input_line).removeprefix('solver.')}" for option in shared] + expanded
    set_names = {override.key_or_group for override in parsed if override.value() is not None}
    sizes = ["model=checkpoint"] if "init" in set_names and "model" not in set_names else []
    return [f"+solver@{level}={name}" for level, name in names.items()] + sizes + expanded


def _shared_solver(level: str, parsed: Sequence[Override]) -> str:
    """The solver of all levels, from the overrides or else the configuration files."""
    solvers = [override for override in parsed if override.key_or_group == "solver"]
    if solvers and solvers[-1].is_sweep_override():
        raise SettingError(level, None, f"{level}=NAME, since solver=A,B sweeps over the solver of all levels")
    if solvers:
        return str(solvers[-1].value())
    return str(_composed(parsed).solver.name)


def _composed(parsed: Sequence[Override]) -> DictConfig:
    """The configuration of the recipe and experiment that the overrides name, without the other overrides."""
    single = [override for override in parsed if not override.is_sweep_override()]
    chosen = [override for override in single if override.key_or_group in ("recipe", "experiment")]
    register_solvers()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            return compose("config", overrides=[str(override.input_line) for override in chosen])
        except HydraException:
            experiment = next((override for override in chosen if override.key_or_group == "experiment"), None)
            if experiment is None:
                raise
            recipe = [override.value() for override in chosen if override.key_or_group == "recipe"]
            remedy = f"an experiment of recipe={recipe[-1] if recipe else 'guided_mae'}: the available experiments "
            raise SettingError("experiment", experiment.value(), f"{remedy}belong to other recipes") from None


def _check_choice(setting: str, group: str, override: Override) -> None:
    if group not in ("data", "evaluation", "experiment", "model", "recipe", "solver", "task"):
        return
    value = override.value()
    for name in value.list if isinstance(value, ChoiceSweep) else [value]:
        if name not in choices(group):
            raise SettingError(setting, name, f"one of {', '.join(choices(group))}")


def _explained(error: Exception, value: Callable[[str], Any], overrides: Sequence[str]) -> SettingError:
    """Hydra's and OmegaConf's errors in one line: the setting, the value it got, and what it expects."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    unknown = re.search(r"Could not override '(.+?)'", str(error))
    if unknown or isinstance(cause, ConfigKeyError | ConfigAttributeError):
        setting = unknown[1] if unknown else str(getattr(cause, "full_key", None) or "settings")
        return SettingError(setting, value(setting), _nearest(setting, _composed([*map(parse_override, overrides)])))
    listed = re.search(r"Ambiguous value for argument '(.+?)=(.*)'", str(error))
    if listed:
        return SettingError(listed[1], listed[2], "one value, [A,B] for a list, or --multirun for a run with each")
    merged = re.search(r"Error merging override \+*(.+?)=", str(error))
    setting = merged[1] if merged else str(getattr(cause, "full_key", None) or "settings")
    message = str(cause or error).splitlines()[0]
    if absent := re.search(r"Incompatible value 'None' for field of type '(\w+)'", message):
        return SettingError(setting, "null", expected(TYPES[absent[1]]) if absent[1] in TYPES else "a value")
    if kind := re.search(r"Value '(.*?)' .*?(?:could not be converted to|is not a valid) (\w+)", message):
        return SettingError(setting, kind[1], expected(TYPES[kind[2]]) if kind[2] in TYPES else kind[2])
    if "is not a ListConfig" in message:
        return SettingError(setting, value(setting), "a list in brackets")
    return SettingError(setting, value(setting), f"something else ({message})")


def _nearest(setting: str, config: DictConfig) -> str:
    """The known setting closest to an unknown one, for a message; for another solver's option, that solver."""
    option = re.fullmatch(r"(?:.*\.)?solver\.(\w+)", setting)
    owners = [name for name, solver in SOLVERS.items() if option and option[1] in readable(solver)]
    if option and owners:
        return f"a setting of the chosen solver; {option[1]} belongs to solver={' or '.join(owners)}"
    known = [name for name, _ in named_settings(OmegaConf.to_container(config))]
    known += [f"solver.{option.name}" for solver in SOLVERS.values() for option in fields(solver)]  # type: ignore[arg-type]
    close = difflib.get_close_matches(setting, known, n=1, cutoff=0.5)
    return f"a known setting, such as {close[0]}" if close else "a known setting (see train --help)"


def _plain_value(config: DictConfig, setting: str) -> Any:
    """The value of a setting; of a solver with its options, its name."""
    value = OmegaConf.select(config, setting)
    return value.get("name", value) if OmegaConf.is_dict(value) else value


def named_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting and group of settings by its full name, with its value."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield f"{prefix}{key}", value
            yield from named_settings(value, f"{prefix}{key}.")


def _value(setting: str, overrides: Sequence[str]) -> str | None:
    values = [text.partition("=")[2] for text in overrides if text.lstrip("+~").partition("=")[0] == setting]
    return values[-1] if values else None
