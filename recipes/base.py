"""The base class of recipes, and the lookup of recipes by name."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from multilevel.problems import Graph
from multilevel.recipes.data import ImageData
from multilevel.recipes.settings import RunSettings, chosen_device
from multilevel.recipes.training import level_arguments
from multilevel.solvers.ranges import require
from multilevel.solvers.registry import chosen, discover


class Recipe(ABC):
    """Wires levels into a graph, from settings. A recipe is one file of this package and one of ``config/recipe``.

    Attributes:
        settings_class: the dataclass of its settings; its configuration file has their values.
        settings: the settings of this recipe.
        device: the device that it computes on.
        graph: the levels.
        one_thread: whether its operations are so small that more than one CPU thread slows them down.
        notes: lines for the screen about choices that settings left open.
        image_data: the images, if the recipe reads any.
        takes_tiles: whether it scores pictures that are cut into tiles (``data.tiles``).
        held_out_from: levels whose loss is that of another level on data held out from it, to plot on the same axes:
            ``{level: other level}``.
    """

    settings_class: ClassVar[type[RunSettings]]
    settings: RunSettings
    device: torch.device
    graph: Graph
    one_thread: bool = False
    notes: tuple[str, ...] = ()
    image_data: ImageData | None = None
    takes_tiles: ClassVar[bool] = False
    held_out_from: Mapping[str, str] = MappingProxyType({})

    @property
    def class_counts(self) -> Sequence[int]:
        """The number of samples of each class, where levels report their accuracy and this is known; else empty."""
        return () if self.image_data is None else self.image_data.target_counts

    @abstractmethod
    def __init__(self, settings: Any) -> None:
        """Construct the graph, with initial weights that depend only on the seed.

        The constructor of this class checks the settings and finds the device: call it first.

        Args:
            settings: an instance of ``settings_class``.

        Raises:
            SettingError: an unusable setting.
            DataError: unusable data.
        """
        settings.validate()
        tiles = getattr(getattr(settings, "data", None), "tiles", None)
        fits = tiles is None or self.takes_tiles
        require("data.tiles", tiles, fits, f"null: recipe={settings.recipe} scores images, not pictures of several")
        self.settings = settings
        self.device = chosen_device(settings.device)

    def update_arguments(self, name: str, module: nn.Module) -> dict[str, Any]:
        """Arguments for a level's Problem from the settings: everything except its data.

        Args:
            name: the level, one of ``settings.levels``.
            module: its module.

        Raises:
            SettingError: an unknown optimizer, schedule or solver, or a number out of range.
        """
        settings: Any = self.settings
        return level_arguments(vars(settings.levels), settings.solver, name, module, settings.steps)

    def write_pictures(self, folder: Path) -> list[Path]:
        """Draw pictures of the levels' current state. Returns the files written."""
        return []

    def findings(self) -> dict[str, Any]:
        """Additional results for the screen and the summary, by name: numbers, text, or tables of these.

        If ``settings.evaluate`` is set, this may train baselines to compare with. Called on all ranks.
        """
        return {}


def recipe_classes() -> dict[str, type[Recipe]]:
    """Every recipe by its name in configuration, which is the name of its file."""
    return discover(importlib.import_module("multilevel.recipes"), Recipe)  # type: ignore[type-abstract]


def recipe_class(name: str, setting: str = "recipe") -> type[Recipe]:
    """Look up a recipe by its name.

    Raises:
        SettingError: the recipe does not exist; the message names ``setting``.
    """
    return chosen(setting, recipe_classes(), name)
