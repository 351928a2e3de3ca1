"""What a recipe is."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from multilevel.problems import Graph
from multilevel.recipes.export.trained import TrainedModel
from multilevel.recipes.settings import RunSettings
from multilevel.solvers.registry import discover


class Recipe(ABC):
    """Wires levels into a graph, from settings; one file of this package, and one of ``config/recipe``.

    Attributes:
        settings_class: what its settings are, whose values stand in its configuration file.
        settings: those of this one.
        graph: the levels.
        images_per_step: images that all updates of a step take together.
        notes: lines for the screen on what was chosen where settings leave it open.
    """

    settings_class: ClassVar[type[RunSettings]]
    settings: RunSettings
    graph: Graph
    images_per_step: int
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, settings: Any) -> None:
        """Construct the graph, with initial weights that depend on the seed alone.

        Args:
            settings: an instance of ``settings_class``.

        Raises:
            SettingError: a setting that cannot work.
            DataError: data that cannot be used.
        """

    @abstractmethod
    def write_pictures(self, folder: Path) -> list[Path]:
        """Draw what the levels have learned so far; returns the files written."""

    def findings(self) -> dict[str, Any]:
        """What else the summary says of the trained levels."""
        return {}

    @abstractmethod
    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Scores on the test split, ``{what: {protocol: score}}``; None where the data cannot be evaluated."""

    def trained_model(self) -> TrainedModel | None:
        """What an export takes; None where the recipe trains no masked autoencoder."""
        return None


def recipe_classes() -> dict[str, type[Recipe]]:
    """Every recipe by the name of its file, which is its name in configuration."""
    return discover(importlib.import_module("multilevel.recipes"), Recipe)  # type: ignore[type-abstract]
