"""multilevel export RUN [SETTING=VALUE ...]: write a folder that transformers or onnxruntime loads

Writes a run's model into one folder, atomically: configuration, weights, image processor, model card (README.md), and
features and optics of a sample of the training images for multilevel monitor. Deploys the classifier that predicts
held-out labelled images best, refitted to all of them, and scores it on the test images. The images must be those of
the run: data.path=DIR names their new place, data.changed=accept exports although some have changed.

  multilevel export runs/guided_mae-digits-20260101-120000 format=onnx output=line
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf

from multilevel.commands.evaluate import run_folder
from multilevel.configuration.command_line import read
from multilevel.configuration.composition import build_recipe, changed
from multilevel.problems.checkpoint import WEIGHTS, newest_intact, take_weights
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.export import write_export
from multilevel.recipes.export.card import model_card, scores_line
from multilevel.recipes.export.folder import FORMATS, check_export, refuse_tiles
from multilevel.recipes.export.heads import AUTO, HEADS, choose_head, score_on_test_images
from multilevel.recipes.export.onnx_model import PRECISIONS
from multilevel.runs.distributed import print_once
from multilevel.runs.folder import RunFolder
from multilevel.solvers import MultilevelError
from multilevel.solvers.ranges import OneOf


@dataclass
class ExportSettings:
    """Settings of ``multilevel export``.

    Args:
        output: the folder to write, which must not exist yet. None: RUN/export.
        format: transformers (model.safetensors, which AutoModel, AutoModelForImageClassification and
            ViTMAEForPreTraining load) or onnx (model.onnx, a classifier for onnxruntime with its preprocessing and
            class names: image, uint8 [B, H, W, C] of any size, to label, probabilities, logits and features; checked
            against PyTorch to 1e-4).
        head: the classifier on the encoder: own (of the finetuning level), linear_probe (logistic regression on frozen
            features), finetune (a new head and the encoder, trained end to end), or auto, which takes the best by the
            task's metric on labelled images held out from each, and tries finetune with up to 5,000 images.
        precision: float32 or, with format=onnx, int8: a smaller file, whose loss of accuracy is measured on labelled
            images (of the validation part, else held out for mask learning, else training images; never of the test
            part), printed, and written into the model card.
    """

    output: str | None = None
    format: Annotated[str, OneOf(*FORMATS)] = "transformers"
    head: Annotated[str, OneOf(AUTO, *HEADS)] = AUTO
    precision: Annotated[str, OneOf(*PRECISIONS)] = "float32"


SETTINGS = ExportSettings


def main(arguments: Sequence[str]) -> int:
    """Write a run's newest checkpoint into a folder for `transformers` or onnxruntime."""
    line = read("export", arguments, ExportSettings, words=True)
    folder = run_folder("export", line.words)
    output = Path(line.settings.output or folder.path / "export")
    format, precision = line.settings.format, line.settings.precision
    check_export(format, output, precision)
    checkpoint, damaged = newest_intact(folder.checkpoint, [WEIGHTS])
    print_once(*damaged)
    step = int(checkpoint.name.removeprefix("step-"))
    config = changed(folder.config_with_division(), line.overrides)
    recipe = build_recipe(config)
    take_weights(recipe.graph, checkpoint)
    assert isinstance(recipe, EncoderRecipe)  # check_encoder
    refuse_tiles(format, recipe.data.tiling)
    if line.settings.head == AUTO:
        print_once("choosing the head on held-out labelled images, which fits each several times (head=own is quicker)")
    choice = choose_head(recipe, line.settings.head)
    trained = recipe.trained_model() if choice is None else choice.model
    words = "encoder and decoder only: the run has no classifier with one class per image"
    record, described = None, None
    if choice is not None:
        words = described = choice.describe()
        record = choice.record()
    test_scores = score_on_test_images(trained, recipe)
    settings: Any = OmegaConf.to_container(config)
    card = partial(model_card, trained, settings, _summary(folder), step, format, described, test_scores)
    loss = write_export(trained, output, format, card, precision, record)
    print(words)
    if test_scores is not None:
        print(scores_line(test_scores, len(trained.data.test.pictures)))
    if loss is not None:
        print(loss)
    print(output)
    return 0


def _summary(folder: RunFolder) -> dict[str, Any] | None:
    """The run's summary.json; None if the run has not ended."""
    path = folder.path / "summary.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise MultilevelError(f"{path} cannot be read: {error}") from error
