"""The command ``multilevel export``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from multilevel.commands.evaluate import check_encoder
from multilevel.configuration.composition import build_recipe, changed
from multilevel.problems.checkpoint import WEIGHTS, newest_intact, take_weights
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.export import write_export
from multilevel.recipes.export.card import model_card
from multilevel.recipes.export.folder import check_export
from multilevel.runs.distributed import tell
from multilevel.runs.folder import RunFolder
from multilevel.solvers import MultilevelError, SettingError

OWN = ("output", "format")


def main(arguments: Sequence[str]) -> int:
    """Write a run's newest checkpoint into a folder for `transformers` or onnxruntime."""
    runs = [argument for argument in arguments if "=" not in argument]
    if len(runs) != 1:
        raise SettingError("export", " ".join(runs) or None, "one run folder: multilevel export RUN")
    given = dict(argument.split("=", 1) for argument in arguments if argument.split("=", 1)[0] in OWN)
    overrides = [argument for argument in arguments if "=" in argument and argument.split("=", 1)[0] not in OWN]
    folder = RunFolder.open("export", Path(runs[0]))
    check_encoder("export", folder)
    output, format = Path(given.get("output") or folder.path / "export"), given.get("format", "transformers")
    check_export(format, output)
    checkpoint, damaged = newest_intact(folder.checkpoint, [WEIGHTS])
    tell(*damaged)
    step = int(checkpoint.name.removeprefix("step-"))
    config = changed(folder.config(), overrides)
    recipe = build_recipe(config)
    take_weights(recipe.graph, checkpoint)
    assert isinstance(recipe, EncoderRecipe)  # check_encoder
    trained = recipe.trained_model()
    settings: Any = OmegaConf.to_container(config)
    write_export(trained, output, format, model_card(trained, settings, _summary(folder), step, format))
    if trained.classifier is None:
        print("encoder and decoder alone: the run has no classifier of one class an image")
    print(output)
    return 0


def _summary(folder: RunFolder) -> dict[str, Any] | None:
    """The run's summary.json; None where the run has not ended."""
    path = folder.path / "summary.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise MultilevelError(f"{path} cannot be read: {error}") from error
