"""multilevel evaluate RUN [SETTING=VALUE ...]: score a run's encoder by probes and finetuning

Scores a run's encoder next to an untrained encoder, raw pixels, the majority class, and the same network trained from
scratch on the labels for as many passes of images through the encoder as the run's (evaluation.references=true leaves
this last one out, which takes about as long as the run). Each protocol is fitted to the labelled training images and
scored on the test split, on the run's own data or on another data set. Writes RUN/evaluation.json, or
RUN/evaluation-NAME.json for another data set. multilevel train takes the same settings for the evaluation at the end of
a run. An exported folder is scored as it is: its classifier, on a folder with a subfolder of images for each class.

  multilevel evaluate RUN evaluation.protocols=[linear_probe,finetune] evaluation.finetune.epochs=50
  multilevel evaluate RUN evaluation.labels=[0.1,10,1]                 a tenth of the labels, ten labels, all labels
  multilevel evaluate RUN evaluation.labels_per_class=[5,20]           5 and 20 labels of each class
  multilevel evaluate RUN data=cifar100 data.path=DIR                  another data set: its images are converted to
                                                                       the size and channels of the encoder, and
                                                                       normalized by their own statistics
  multilevel evaluate RUN data=folder data.path=DIR data.name=NAME     writes evaluation-NAME.json
  multilevel evaluate EXPORT data.path=DIR output=scores.json          an exported classifier
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multilevel.commands.evaluate_export import evaluate_export, is_export
from multilevel.configuration.command_line import NoSettings, exists, read
from multilevel.configuration.composition import build_recipe, changed, with_groups
from multilevel.problems import load_weights
from multilevel.problems.checkpoint import WEIGHTS, newest_intact, step_of
from multilevel.recipes.base import recipe_class
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.evaluation import EvaluationSettings, describe_scores
from multilevel.runs.distributed import print_once
from multilevel.runs.folder import RunFolder
from multilevel.solvers import DataError, SettingError
from multilevel.solvers.ranges import require

SHAPE = ("image_size", "channels", "patch_size")  # of the images that an encoder takes
REFERENCES = "evaluation.references="
DIVISION = ("test_share", "validation_share", "split_seed")  # of the run's own images


def main(arguments: Sequence[str]) -> int:
    """Evaluate the encoder of a run's newest checkpoint, on its own data or on another data set, and write the scores
    into its folder: evaluation.json, or evaluation-NAME.json for the data set NAME."""
    if any(exists(argument) and is_export(Path(argument)) for argument in arguments):
        return evaluate_export(arguments)
    line = read("evaluate", arguments, NoSettings, words=True)
    folder = run_folder("evaluate", line.words)
    stored = folder.config_with_division()
    config, transfer = evaluation_config(stored, line.overrides)
    if config.evaluation.references is True and not any(text.startswith(REFERENCES) for text in line.overrides):
        config.evaluation.references = "supervised"
    recipe = build_recipe(config)
    assert isinstance(recipe, EncoderRecipe)  # check_encoder
    # Only the encoder: the trained head is for the run's own classes.
    verify = recipe.settings.checkpoint.verify
    print_once(*load_weights(recipe.graph, folder.checkpoint, recipe.encoder_level, verify))
    recipe.encoder_passes = encoder_passes(recipe, folder, stored)
    scores = recipe.evaluate()
    if scores is None:
        where = config.data.path or config.data.name
        raise DataError(f"the images of {where} have no labels: nothing can be evaluated")
    name = f"evaluation-{config.data.name}.json" if transfer else "evaluation.json"
    written = folder.write_json(name, [asdict(score) for score in scores])
    settings: Any = recipe.settings
    print(describe_scores(scores, recipe.data, settings.evaluation))
    print(written)
    return 0


def encoder_passes(recipe: EncoderRecipe, folder: RunFolder, stored: DictConfig) -> int:
    """The passes of images through the encoder that the newest checkpoint has had, see ``EncoderRecipe``.

    The recipe counts those of a whole run, in its batches, which are single images for another data set.
    """
    settings: Any = recipe.settings
    checkpoint, _ = newest_intact(folder.checkpoint, [WEIGHTS], settings.checkpoint.verify)
    batches = recipe.encoder_passes // settings.data.batch_size
    return batches * stored.data.batch_size * step_of(checkpoint) // settings.steps


def run_folder(command: str, words: Sequence[str]) -> RunFolder:
    """The one run that a command names, of a recipe that trains an encoder.

    Raises:
        SettingError: no run, several, or one without an encoder.
    """
    require(command, " ".join(words) or None, len(words) == 1, f"one run folder: multilevel {command} RUN")
    folder = RunFolder.open(command, Path(words[0]))
    recipe = folder.config().recipe
    trained = issubclass(recipe_class(recipe), EncoderRecipe)
    require(command, str(folder.path), trained, f"a run that trains an encoder, which {recipe} does not")
    return folder


def evaluation_config(stored: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, bool]:
    """The configuration to evaluate a run with, and whether that is on another data set.

    ``data=NAME`` replaces the run's whole group ``data``. Its images are resized to the shape that the encoder takes,
    and normalized by the statistics of their own training images.

    Args:
        stored: the run's.
        overrides: overrides from the command line.

    Raises:
        SettingError: an unknown setting, another image shape, or another split of the images that the encoder was
            trained on.
    """
    config, remaining = with_groups(stored, overrides, ("data", "task"))
    transfer = any(override.startswith("data=") for override in overrides)
    if transfer:
        named = [name for name in SHAPE if any(override.startswith(f"data.{name}=") for override in overrides)]
        _check_same(config, stored, named, "the encoder takes no other")
        for name in SHAPE:
            config.data[name] = stored.data[name]
        if "init_statistics" in config:
            config.init_statistics = "own"
        config.data.batch_size = 1  # no level is trained here, so a data set of any size will do
    # protocol options that the run's version lacked
    defaults = OmegaConf.structured(EvaluationSettings)
    config.evaluation = OmegaConf.to_container(OmegaConf.merge(defaults, config.evaluation))
    config = changed(config, remaining)
    if transfer and _source(config) == _source(stored):
        expected = "a data set other than the run's own, whose training images may include the test images"
        raise SettingError("data", config.data.name, f"{expected}; without data= the run's split applies")
    if not transfer:
        _check_same(config, stored, SHAPE, "the encoder takes no other")
        _check_same(config, stored, DIVISION, "the encoder was trained with this split")
    return config, transfer


def _source(config: DictConfig) -> tuple[str, ...]:
    """The source of a data set's images."""
    data = config.data
    if data.path:
        return ("path", str(Path(data.path).expanduser().resolve()))
    return ("hub", data.hub) if data.hub else ("name", data.name)


def _check_same(config: DictConfig, stored: DictConfig, names: Sequence[str], why: str) -> None:
    for name in names:
        got, expected = config.data.get(name), stored.data.get(name)
        if got != expected:
            raise SettingError(f"data.{name}", got, f"{expected}, as in the run: {why}")
