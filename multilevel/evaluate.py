"""The command ``multilevel evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multilevel.configuration import build_recipe, changed
from multilevel.problems import load_weights
from multilevel.recipes.evaluation import format_table
from multilevel.run_folder import RunFolder
from multilevel.solvers import DataError, SettingError


def main(arguments: Sequence[str]) -> int:
    """Evaluate a run's newest checkpoint on the test split, and write evaluation.json into its folder."""
    runs = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if len(runs) != 1:
        raise SettingError("evaluate", " ".join(runs) or None, "one run folder: multilevel evaluate RUN")
    folder = RunFolder.open("evaluate", Path(runs[0]))
    recipe = build_recipe(changed(folder.config(), overrides))
    load_weights(recipe.graph, folder.checkpoint)
    scores = recipe.evaluate()
    if scores is None:
        raise DataError(f"the images of {folder.path} have no labels: there is nothing to evaluate on")
    print(format_table(scores))
    print(folder.write_json("evaluation.json", scores))
    return 0
