"""Recipe: learn a few images of each class that replace the training images of a classifier (data distillation).

Follows: Wang et al. 2018, "Dataset Distillation", with implicit instead of unrolled derivatives: on MNIST, 10 images
take a network with known initial weights from 12.9% to 93.8%, and 100 images take a network with unknown initial
weights to 79.5%. Vicol et al. 2022, "On Implicit Bias in Overparameterized Bilevel Optimization", show that images
learned with a network that is never retrained do not train any other network; the classifier here is therefore linear
and penalized, with a single minimum.

Result: ``multilevel train recipe=distillation`` (digits, one learned image per class, seed 0): a new linear classifier
reaches a test accuracy of 92.5%, against 66.6% with one random image per class and 97.2% with all 1,438 images; a
classifier with a hidden layer 93.9%, 66.4% and 98.6%. Images learned for one classifier need not suit another: with
``images_per_class=5`` the linear classifier reaches 98.3% (87% with random images), the one with a hidden layer 36%
(88%).
``data=cifar10 data.path=DIR data.limit=5000 other_width=0``: 36.9%, against 15.3% with one random image per class and
32.8% with all 5,000 under the same penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from multilevel.levels.classification import Classification, accuracy
from multilevel.levels.distilled_classification import (
    Classifier,
    DistilledClassification,
    LearnedImages,
    fit_classifier,
)
from multilevel.problems import Graph
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.base import Recipe
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.data.tensors import batches, some_of_each_class, tensors
from multilevel.recipes.pictures.images import draw_images
from multilevel.recipes.settings import LevelSettings, LowerLevelSettings, RunSettings
from multilevel.solvers.ranges import AtLeast, Count, PositiveNumber, require

DRAWS = 5  # draws of random images, whose mean accuracy is the baseline


@dataclass(kw_only=True)
class DistillationLevels:
    """The two levels."""

    classify: LowerLevelSettings
    distill: LevelSettings


@dataclass(kw_only=True)
class DistillationSettings(RunSettings):
    """Settings of ``recipe=distillation``.

    Args:
        images_per_class: learned images of each class.
        width: width of the classifier's hidden layer; 0: a linear classifier.
        penalty: penalty on its squared weights.
        other_width: width of the hidden layer of another classifier that tests the learned images.
    """

    data: DataSettings
    images_per_class: Count
    width: Annotated[int, AtLeast(0)]
    penalty: PositiveNumber
    other_width: Annotated[int, AtLeast(0)]
    levels: DistillationLevels


class Distillation(Recipe):
    """The level ``classify`` trains only on learned images; the level ``distill`` updates them to lower the
    classifier's loss on real images."""

    settings_class: ClassVar[type[RunSettings]] = DistillationSettings
    settings: DistillationSettings

    def __init__(self, settings: DistillationSettings) -> None:
        super().__init__(settings)
        self.data = self.image_data = load_data(settings.data)
        self.real, self.test = tensors(self.data, self.data.train), tensors(self.data, self.data.test)
        fewest, per_class = int(torch.bincount(self.real[1]).min()), settings.images_per_class
        expected = f"at most {fewest}, the size of the smallest class"
        require("images_per_class", per_class, per_class <= fewest, expected)
        self.classes = torch.arange(len(self.data.class_names)).repeat_interleave(per_class)
        with RandomState.seeded(settings.seed).active():
            noise = torch.randn(len(self.classes), *self.real[0].shape[1:])
        self.learned = LearnedImages(noise, self.classes).to(self.device)
        classifier = self._new_classifier(settings.width, settings.seed)
        lower = self.update_arguments("classify", classifier)
        upper = self.update_arguments("distill", self.learned)
        real = batches(*self.real, size=settings.data.batch_size)
        self.graph = Graph(
            DistilledClassification("classify", classifier, images="distill", penalty=settings.penalty, **lower),
            Classification("distill", self.learned, classifier="classify", data=real, **upper),
        )

    def findings(self) -> dict[str, Any]:
        """The test accuracy of new classifiers of the recipe's kind and of another kind, trained on the learned images,
        on equally many random images per class (mean over several draws), and on all images."""
        if not self.settings.evaluate:
            return {}
        learned = self.learned().detach().cpu(), self.classes
        widths = {
            "test_accuracy": self.settings.width,
            "test_accuracy_of_the_other_classifier": self.settings.other_width,
        }
        return {
            name: {
                "learned images": self._accuracy(width, *learned),
                "random images": fmean(self._accuracy(width, *self._random_images(draw)) for draw in range(DRAWS)),
                "all images": self._accuracy(width, *self.real),
            }
            for name, width in widths.items()
        }

    def write_pictures(self, folder: Path) -> list[Path]:
        mean, std = (statistic[:, None, None] for statistic in (self.data.mean, self.data.std))
        images = (self.learned().detach().cpu() * std + mean).split(self.settings.images_per_class)
        draw_images(folder / "learned.png", dict(zip(self.data.class_names, images, strict=True)))
        return [folder / "learned.png"]

    def _accuracy(self, width: int, images: Tensor, classes: Tensor) -> float:
        """Test accuracy of a new classifier fitted to some images."""
        classifier = self._new_classifier(width, self.settings.seed + 1)  # not those that the images were learned with
        fit_classifier(classifier, images, classes, self.settings.penalty)
        return accuracy(classifier, *self.test)

    def _random_images(self, draw: int) -> tuple[Tensor, Tensor]:
        """Real images, as many per class as are learned."""
        (images, labels), count = self.real, self.settings.images_per_class
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw))
        positions = some_of_each_class(labels, order, count)
        return images[positions], labels[positions]

    def _new_classifier(self, width: int, seed: int) -> Classifier:
        with RandomState.seeded(seed).active():
            return Classifier(self.real[0][0].numel(), width, len(self.data.class_names)).to(self.device)
