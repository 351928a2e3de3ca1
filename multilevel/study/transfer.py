"""Evaluates a run's encoder on another data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from multilevel.commands.evaluate import evaluation_config
from multilevel.commands.evaluate import main as evaluate
from multilevel.configuration.composition import build_recipe
from multilevel.runs.folder import RunFolder


def transfer_config(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration for evaluating a run on another data set, checked by building its recipe.

    Args:
        config: the run's configuration.
        overrides: ``data=NAME`` and its settings.

    Raises:
        SettingError: an unusable setting.
        DataError: unusable data.
    """
    transfer = evaluation_config(config, overrides)[0]
    build_recipe(transfer)
    return transfer


def write_transfer(run: Path, overrides: Sequence[str], name: str) -> None:
    """Evaluate the encoder of a run on another data set, and write the scores into the run folder.

    Args:
        run: its folder.
        overrides: ``data=NAME`` and its settings.
        name: a part of the file's name.
    """
    evaluate([str(run), *overrides])
    transfer = transfer_config(RunFolder(run).config(), overrides)
    (run / f"evaluation-{transfer.data.name}.json").replace(run / name)
