"""A run's encoder on another data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from multilevel.configuration import build_recipe, compose_config, typed_settings
from multilevel.problems import load_weights
from multilevel.recipes.base import recipe_classes
from multilevel.recipes.data import ImageData, load_data
from multilevel.run_folder import RunFolder
from multilevel.solvers import DataError
from multilevel.study.scores import score_rows


def other_data(config: DictConfig, overrides: Sequence[str]) -> ImageData:
    """Another data set, its images brought to the size and channels of a run's.

    Args:
        config: of the run.
        overrides: ``data=NAME`` and its settings.

    Raises:
        SettingError: a setting that cannot work.
        DataError: data that cannot be used, or without labels.
    """
    size = [f"data.image_size={config.data.image_size}", f"data.channels={config.data.channels}"]
    settings = compose_config([*overrides, *size, f"recipe={config.recipe}"])
    data = load_data(typed_settings(settings, recipe_classes()[config.recipe].settings_class).data, allow_no_mask=True)
    if not data.labelled or not len(data.test):
        raise DataError(f"transfer: {settings.data.name} has no labels, or no test images, to evaluate on")
    return data


def write_transfer(run: Path, overrides: Sequence[str], name: str) -> None:
    """Evaluate the encoder of a run on another data set, and write the scores into the run folder.

    Args:
        run: its folder.
        overrides: as in `other_data`.
        name: of the file.
    """
    folder = RunFolder.open("transfer", run)
    recipe: Any = build_recipe(folder.config())
    load_weights(recipe.graph, folder.checkpoint)
    recipe.data = other_data(folder.config(), overrides)
    folder.write_json(name, score_rows(recipe.evaluate()))
