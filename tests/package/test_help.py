"""--help is made from what commands and settings declare: nothing is left out, and defaults are those of a run."""

from __future__ import annotations

import re
from dataclasses import is_dataclass

import pytest
from omegaconf import OmegaConf

from multilevel.__main__ import main
from multilevel.commands.help import help_for, settings_of
from multilevel.commands.overview import COMMANDS, overview
from multilevel.configuration.command_line import field_descriptions, readable, settable
from multilevel.configuration.composition import choices, compose_config, named_settings
from multilevel.recipes.base import recipe_classes
from multilevel.recipes.evaluation import EvaluationSettings
from multilevel.recipes.settings import LowerLevelSettings
from multilevel.solvers.ranges import base_type


def settings_in(text):
    """``{setting: default}`` of the entries of a help text."""
    return dict(re.findall(r"^  ([\w.]+)(?:=(\S+))?(?:  |$)", text, re.MULTILINE))


def leaves(settings_class, prefix=""):
    """Every setting by its full name, with the dataclass that declares it."""
    for name, kind in readable(settings_class).items():
        if is_dataclass(base_type(kind)):
            yield from leaves(base_type(kind), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", settings_class


def test_the_overview_has_a_line_for_every_command():
    lines = overview().splitlines()[2:-2]
    assert [line.split()[:2] for line in lines] == [["multilevel", command] for command in COMMANDS]
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_all_its_settings(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"multilevel {command}")
    assert set(settable(settings_of(command))) <= set(settings_in(text))
    assert max(map(len, text.partition("Choices")[0].splitlines())) <= 140


@pytest.mark.parametrize("recipe", recipe_classes())
def test_the_help_of_a_recipe_has_all_settings_with_the_defaults_of_a_run(recipe):
    text = help_for("train", [f"recipe={recipe}"])
    shown = settings_in(text)
    config = OmegaConf.to_container(compose_config([f"recipe={recipe}"]))
    for name, value in named_settings(config):
        if name.startswith(("levels", "evaluation.", "solver.", "task.")) or isinstance(value, dict):
            continue
        written = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        assert shown[name] in (written, written.replace(", ", ","), ""), name
        assert shown[name] or len(written) > 30, name
    assert {f"levels.LEVEL.{name}" for name, _ in leaves(LowerLevelSettings)} <= set(shown)
    for group in ("recipe", "data", "solver"):
        assert all(name in text for name in choices(group))


@pytest.mark.parametrize("recipe", recipe_classes())
def test_every_setting_of_a_recipe_is_described(recipe):
    for name, settings_class in leaves(recipe_classes()[recipe].settings_class):
        assert field_descriptions(settings_class).get(name.rpartition(".")[2]), name


def test_the_help_of_evaluate_has_the_options_of_every_protocol():
    shown = settings_in(help_for("evaluate"))
    assert {f"evaluation.{name}" for name, _ in leaves(EvaluationSettings)} <= set(shown)
    assert shown["evaluation.finetune.drop_path"] == "0.1"
