"""The base class of recipes, and the recipes by name."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from multilevel.problems import Graph
from multilevel.recipes.settings import RunSettings, chosen_device
from multilevel.recipes.training import level_arguments
from multilevel.solvers.registry import chosen, discover


class Recipe(ABC):
    """Wires levels into a graph, from settings; one file of this package, and one of ``config/recipe``.

    Attributes:
        settings_class: the dataclass of its settings, whose values are in its configuration file.
        settings: the settings of this recipe.
        device: where it computes.
        graph: the levels.
        one_thread: whether its operations are so small that more than one CPU thread would slow them down.
        notes: lines for the screen on what was chosen where settings leave it open.
    """

    settings_class: ClassVar[type[RunSettings]]
    settings: RunSettings
    device: torch.device
    graph: Graph
    one_thread: bool = False
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, settings: Any) -> None:
        """Construct the graph, with initial weights that depend only on the seed.

        The constructor of this class checks the settings and finds the device: call it first.

        Args:
            settings: an instance of ``settings_class``.

        Raises:
            SettingError: a setting that cannot work.
            DataError: data that cannot be used.
        """
        settings.validate()
        self.settings = settings
        self.device = chosen_device(settings.device)

    def update_arguments(self, name: str, module: nn.Module) -> dict[str, Any]:
        """Arguments of a level's Problem from the settings: everything but its data.

        Args:
            name: the level, one of ``settings.levels``.
            module: its module.

        Raises:
            SettingError: an unknown optimizer, schedule or solver, or a number out of range.
        """
        settings: Any = self.settings
        return level_arguments(vars(settings.levels), settings.solver, name, module, settings.steps)

    def write_pictures(self, folder: Path) -> list[Path]:
        """Draw pictures of what the levels have learned so far. Returns the files written."""
        return []

    def findings(self) -> dict[str, Any]:
        """Further results for the screen and the summary, by name: numbers, text, or tables of them.

        If ``settings.evaluate`` is set, this may train baselines to compare with. Called on all ranks.
        """
        return {}


def recipe_classes() -> dict[str, type[Recipe]]:
    """Every recipe by the name of its file, which is its name in configuration."""
    return discover(importlib.import_module("multilevel.recipes"), Recipe)  # type: ignore[type-abstract]


def recipe_class(name: str, setting: str = "recipe") -> type[Recipe]:
    """A recipe by its name.

    Raises:
        SettingError: there is no such recipe; ``setting`` is named in the message.
    """
    return chosen(setting, recipe_classes(), name)
