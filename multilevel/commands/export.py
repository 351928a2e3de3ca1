"""multilevel export RUN [SETTING=VALUE ...]: write a folder that transformers or onnxruntime loads

Writes a run's model into one folder, atomically: configuration, weights, image processor, model card (README.md), and
features and optics of a sample of the training images for multilevel monitor. Deploys the classifier that predicts
held-out labelled images best, refitted to all of them, and scores it on the test images. The images must be those of
the run: data.path=DIR names their new place, data.changed=accept exports although some have changed.

  multilevel export runs/guided_mae-digits-20260101-120000 format=onnx output=line
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf

from multilevel.commands.evaluate import encoder_passes, run_folder
from multilevel.configuration.command_line import read
from multilevel.configuration.composition import build_recipe, changed
from multilevel.problems.checkpoint import WEIGHTS, newest_intact, step_of, take_weights
from multilevel.recipes.data import ImageData
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.export import write_export
from multilevel.recipes.export.card import model_card, scores_line
from multilevel.recipes.export.folder import EVALUATION, FORMATS, INSPECTION, check_export, refuse_tiles
from multilevel.recipes.export.heads import AUTO, HEADS, HeadChoice, choose_head, score_on_test_images
from multilevel.recipes.export.onnx_model import PRECISIONS
from multilevel.recipes.export.operating_point import (
    MAX_FALSE_ALARMS,
    MIN_RECALL,
    NUMBER,
    RULES,
    OperatingPoint,
    choose_operating_point,
    good_class,
    threshold_number,
)
from multilevel.recipes.export.references import References, score_references
from multilevel.runs.distributed import print_once
from multilevel.runs.folder import RunFolder
from multilevel.solvers import MultilevelError
from multilevel.solvers.files import parse_json, read_whole
from multilevel.solvers.ranges import Above, AtLeast, Below, OneOf, Text, require


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
        good: the class of good parts, every other one being a defect. None: a class named good, ok, normal, free, fine,
            pass, 良品 or similar. With one, the export stores a threshold of the probability of a defect.
        threshold: false_alarms (the lowest with at most max_false_alarms on held-out labelled images), recall (the
            highest with at least min_recall), or a number.
        max_false_alarms: largest share of good parts to stop.
        min_recall: smallest share of the defects to find.
        references: what to compare the export with on the test images: true (an untrained encoder, raw pixels and the
            majority class), supervised (also the same network trained from scratch on the labels, which takes about as
            long as the run), or false. None: supervised with up to 5,000 labelled images, otherwise true.
    """

    output: str | None = None
    format: Annotated[str, OneOf(*FORMATS)] = "transformers"
    head: Annotated[str, OneOf(AUTO, *HEADS)] = AUTO
    precision: Annotated[str, OneOf(*PRECISIONS)] = "float32"
    good: Text | None = None
    threshold: str = RULES[0]
    max_false_alarms: Annotated[float, AtLeast(0), Below(1)] = MAX_FALSE_ALARMS
    min_recall: Annotated[float, Above(0), Below(1)] = MIN_RECALL
    references: Annotated[Any, OneOf(None, True, False, "supervised")] = None

    def good_class(self, data: ImageData) -> str | None:
        """The class of good parts; None without one.

        Raises:
            SettingError: ``good`` is not a class, or not that by which tiles stand for pictures.
        """
        tiled = None if data.tiling is None else data.tiling.good
        good = good_class(data.class_names, self.good or tiled)
        require("good", self.good, tiled in (None, good), f"{tiled}, by which the run chose tiles (data.good)")
        return good

    def operating_point(self, choice: HeadChoice) -> OperatingPoint | None:
        """The operating point of a classifier; None without a class of good parts.

        Raises:
            SettingError: ``good`` is not a class, or the threshold neither a rule nor a number.
            DataError: no held-out image is of the kind that the rule counts.
        """
        number, names = threshold_number(self.threshold), choice.model.data.class_names
        good = self.good_class(choice.model.data)
        if good is None or len(names) < 2:
            return None
        if number is not None:
            return OperatingPoint(good, number, NUMBER, None)
        limit = self.min_recall if self.threshold == "recall" else self.max_false_alarms
        return choose_operating_point(choice.probabilities, choice.labels, names, good, self.threshold, limit)

    def scored_references(
        self, recipe: EncoderRecipe, metric: str, scores: Mapping[str, float] | None
    ) -> References | None:
        """The references on the test images; None without test images, or if none were asked for."""
        if self.references is False or scores is None or metric not in scores:
            return None
        return score_references(recipe, self.references, metric, scores[metric])


SETTINGS = ExportSettings


def main(arguments: Sequence[str]) -> int:
    """Write a run's newest checkpoint into a folder for `transformers` or onnxruntime."""
    line = read("export", arguments, ExportSettings, words=True)
    folder = run_folder("export", line.words)
    output = Path(line.settings.output or folder.path / "export")
    format, precision = line.settings.format, line.settings.precision
    check_export(format, output, precision)
    config = changed(folder.config_with_division(), line.overrides)
    checkpoint, damaged = newest_intact(folder.checkpoint, [WEIGHTS], bool(config.checkpoint.verify))
    print_once(*damaged)
    step = step_of(checkpoint)
    recipe = build_recipe(config)
    take_weights(recipe.graph, checkpoint)
    assert isinstance(recipe, EncoderRecipe)  # check_encoder
    threshold_number(line.settings.threshold)
    line.settings.good_class(recipe.data)
    refuse_tiles(format, recipe.data.tiling)
    if line.settings.head == AUTO:
        print_once("choosing the head on held-out labelled images, which fits each several times (head=own is quicker)")
    choice = choose_head(recipe, line.settings.head)
    trained = recipe.trained_model() if choice is None else choice.model
    records: dict[str, Any] = {}
    remarks: list[str] = []
    test_scores = None
    if choice is not None:
        point = line.settings.operating_point(choice)
        records[INSPECTION] = {**choice.record(), "operating_point": point and point.record()}
        remarks += [point.describe()] if point else []
        test_scores = score_on_test_images(trained, recipe)
        recipe.encoder_passes = encoder_passes(recipe, folder, config)
        references = line.settings.scored_references(recipe, choice.metric, test_scores)
        if references is not None:
            records[EVALUATION] = references.record()
            remarks.append(f"on the test images: {references.describe()}")
    settings: Any = OmegaConf.to_container(config)
    described = None if choice is None else choice.describe()
    card = partial(model_card, trained, settings, _summary(folder), step, format, described, test_scores, remarks)
    loss = write_export(trained, output, format, card, precision, records)
    print(described or "encoder and decoder only: the run has no classifier with one class per image")
    if test_scores is not None:
        print(scores_line(test_scores, len(trained.data.test.pictures)))
    print(*remarks, *([] if loss is None else [loss]), output, sep="\n")
    return 0


def _summary(folder: RunFolder) -> dict[str, Any] | None:
    """The run's summary.json; None if the run has not ended."""
    path = folder.path / "summary.json"
    if not path.exists():
        return None
    try:
        return parse_json(read_whole(path))
    except (OSError, ValueError) as error:
        raise MultilevelError(f"{path} cannot be read: {error}") from error
