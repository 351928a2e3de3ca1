"""The base class of recipes that train an image encoder, to evaluate and export."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from multilevel.recipes.base import Recipe
from multilevel.recipes.data import ImageData
from multilevel.recipes.evaluation import Candidate, Score, Setup
from multilevel.recipes.export.trained import TrainedModel


class EncoderRecipe(Recipe):
    """A recipe that trains a masked autoencoder.

    Attributes:
        encoder_level: the level whose module ``evaluate`` evaluates; it reads no other level's weights.
        images_per_step: images in the batches of all updates of one step.
        encoder_passes: images in the batches of all updates of pretraining and finetuning in the whole run, for which
            a supervised reference is trained.
        data: the images.
    """

    takes_tiles = True
    encoder_level: ClassVar[str]
    images_per_step: int
    encoder_passes: int
    data: ImageData

    @abstractmethod
    def evaluate(self) -> list[Score] | None:
        """Score the encoder on the split set in ``settings.evaluation``; None without labels.

        Raises:
            DataError: no images to score, or an encoder whose features are not finite.
            SettingError: too few images for two classes, or a protocol that does not suit the labels.
        """

    @abstractmethod
    def candidates(self, references: Any) -> list[Candidate]:
        """The encoders to evaluate, the trained one first, then the references; ``references`` is one of the values of
        ``evaluation.references``."""

    @abstractmethod
    def setup(self) -> Setup:
        """The data, task and device of evaluations; only with labels."""

    @abstractmethod
    def head_training(self, head: nn.Module) -> tuple[Optimizer, LRScheduler, int, int]:
        """How a head is trained: a new optimizer and schedule for it, the number of updates, the images in a batch."""

    @abstractmethod
    def trained_model(self) -> TrainedModel:
        """The autoencoder and its classifier, for export."""


def images_per_step(recipe: Recipe) -> int | None:
    """Images in the batches of one step; None for a recipe that trains no encoder."""
    return recipe.images_per_step if isinstance(recipe, EncoderRecipe) else None
