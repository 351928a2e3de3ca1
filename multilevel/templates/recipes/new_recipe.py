"""Recipe: learn the penalty on each pixel's weights in a linear classifier of digits.

Follows: nothing published; name here the publication that your recipe follows, and its result.

Result: ``multilevel train recipe=new_recipe`` prints what ``findings`` returns; write it down here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from multilevel.levels.classification import Classification, accuracy
from multilevel.problems import Graph
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.levels import Levels
from multilevel.recipes.base import Recipe
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.data.tensors import batches, tensors
from multilevel.recipes.settings import LevelSettings, LowerLevelSettings, RunSettings
from multilevel.solvers.ranges import PositiveNumber


@dataclass(kw_only=True)
class NewRecipeLevels:
    """The levels, bottom level first."""

    classify: LowerLevelSettings
    penalty: LevelSettings


@dataclass(kw_only=True)
class NewRecipeSettings(RunSettings):
    """Settings of ``recipe=new_recipe``, described for its ``--help``.

    Args:
        strength: the initial penalty of every weight.
    """

    data: DataSettings
    strength: PositiveNumber
    levels: NewRecipeLevels


class Strengths(nn.Module):
    """The logarithm of each pixel's penalty."""

    def __init__(self, pixels: int, strength: float) -> None:
        super().__init__()
        self.logarithms = nn.Parameter(torch.full((pixels,), strength).log())


class Penalized(Classification):
    """The lower level: cross-entropy of the classifier, and a penalty on its weights that the upper level holds."""

    def criterion(self, outputs: Tensor, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().criterion(outputs, levels, batch, draws)
        penalties = levels.penalty.logarithms.exp() * levels.classify.weight.square()
        return loss + penalties.sum(), metrics


class NewRecipe(Recipe):
    """The level ``classify`` trains on penalized weights; ``penalty`` lowers the loss on held-out images."""

    settings_class: ClassVar[type[RunSettings]] = NewRecipeSettings
    settings: NewRecipeSettings

    def __init__(self, settings: NewRecipeSettings) -> None:
        super().__init__(settings)  # checks the settings and finds the device
        data, size = load_data(settings.data), settings.data.batch_size
        parts = [tensors(data, part) for part in (data.finetune, data.mask, data.test)]
        train, self.held_out, self.test = [(images.flatten(1), labels) for images, labels in parts]
        pixels = train[0].shape[1]
        with RandomState.seeded(settings.seed).active():
            self.classifier = nn.Linear(pixels, len(data.class_names)).to(self.device)
        strengths = Strengths(pixels, settings.strength).to(self.device)
        lower = self.update_arguments("classify", self.classifier)
        upper = self.update_arguments("penalty", strengths)
        self.graph = Graph(  # bottom level first
            Penalized("classify", self.classifier, data=batches(*train, size=size), **lower),
            Classification(
                "penalty", strengths, classifier="classify", data=batches(*self.held_out, size=size), **upper
            ),
        )

    def findings(self) -> dict[str, Any]:
        """Results to print at the end of a run, and to store in its summary.json."""
        return {"test_accuracy": accuracy(self.classifier, *self.test)}
