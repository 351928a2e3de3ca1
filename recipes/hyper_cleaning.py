"""Recipe: learn which training labels are wrong from a few clean ones (data hyper-cleaning).

Follows: Franceschi et al. 2017, "Forward and Reverse Gradient-Based Hyperparameter Optimization", section 5.1: linear
classifiers of MNIST, half of 5,000 training labels wrong, 5,000 held out: test accuracy 90.1% cleaned, 87.7% without
cleaning, 90.5% with an oracle that knows the wrong labels.

Result: ``multilevel train recipe=hyper_cleaning`` (digits, half of 863 training labels wrong, 575 held out, seed 0):
ROC AUC of the weights 0.98; test accuracy 94.7% cleaned, 90.5% without cleaning, 96.9% with the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from multilevel.levels.classification import Classification, WeightedClassification, accuracy, multilayer_perceptron
from multilevel.problems import Engine, Graph
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.base import Recipe
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.data.tensors import batches, tensors
from multilevel.recipes.settings import LevelSettings, LowerLevelSettings, RunSettings
from multilevel.solvers.ranges import Above, AtLeast, Below


@dataclass(kw_only=True)
class HyperCleaningLevels:
    """The two levels."""

    classify: LowerLevelSettings
    clean: LevelSettings


@dataclass(kw_only=True)
class HyperCleaningSettings(RunSettings):
    """Settings of ``recipe=hyper_cleaning``.

    Args:
        noise: share of the training samples with a label replaced by a random other label.
        width: width of the classifier's hidden layer; 0: a linear classifier, as published.
    """

    data: DataSettings
    noise: Annotated[float, Above(0), Below(1)]
    width: Annotated[int, AtLeast(0)]
    levels: HyperCleaningLevels


class SampleWeights(nn.Module):
    """A weight between 0 and 1 for each sample, initially 0.5: sample indices int64 [B] to weights [B]."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(samples))

    def forward(self, samples: Tensor) -> Tensor:
        return self.logits[samples].sigmoid()


class HyperCleaning(Recipe):
    """The level ``classify`` trains on weighted samples, some with wrong labels; the level ``clean`` updates the
    weights to lower the classifier's loss on samples with right labels."""

    settings_class: ClassVar[type[RunSettings]] = HyperCleaningSettings
    held_out_from = MappingProxyType({"clean": "classify"})
    settings: HyperCleaningSettings

    def __init__(self, settings: HyperCleaningSettings) -> None:
        super().__init__(settings)
        data, size = load_data(settings.data), settings.data.batch_size
        self.image_data = data
        self.classes = len(data.class_names)
        self.inputs, labels = tensors(data, data.finetune)
        self.held_out, self.test = tensors(data, data.mask), tensors(data, data.test)
        with RandomState.seeded(settings.seed).active():
            self.wrong = torch.rand(len(labels)) < settings.noise
            wrong_labels = (labels + torch.randint(1, self.classes, labels.shape)) % self.classes
        self.labels = torch.where(self.wrong, wrong_labels, labels)
        self.weights = SampleWeights(len(labels)).to(self.device)
        classifier = self._new_classifier()
        training = batches(self.inputs, self.labels, torch.arange(len(labels)), size=size)
        lower = self.update_arguments("classify", classifier)
        upper = self.update_arguments("clean", self.weights)
        self.graph = Graph(
            WeightedClassification("classify", classifier, weights="clean", data=training, **lower),
            Classification(
                "clean", self.weights, classifier="classify", data=batches(*self.held_out, size=size), **upper
            ),
        )

    def findings(self) -> dict[str, Any]:
        """How well the weights separate right from wrong labels (ROC AUC), and the test accuracy of classifiers trained
        on the samples with a weight above 0.5, on all samples, and on those with right labels, always including the
        held-out samples."""
        weights = self.weights.logits.detach().cpu()
        findings: dict[str, Any] = {"separation_auc": float(roc_auc_score(~self.wrong, weights))}
        if self.settings.evaluate:
            subsets = {"cleaned": weights > 0, "no cleaning": self.wrong | True, "only clean (oracle)": ~self.wrong}
            classifiers = {name: self._trained(subset) for name, subset in subsets.items()}
            findings["test_accuracy"] = {name: accuracy(model, *self.test) for name, model in classifiers.items()}
        return findings

    def _trained(self, subset: Tensor) -> nn.Module:
        """Train a classifier on some of the samples and the held-out samples, for as many updates as the recipe's."""
        settings, classifier = self.settings, self._new_classifier()
        inputs = torch.cat([self.inputs[subset], self.held_out[0]])
        data = batches(inputs, torch.cat([self.labels[subset], self.held_out[1]]), size=settings.data.batch_size)
        problem = Classification("classify", classifier, data=data, **self.update_arguments("classify", classifier))
        Engine(Graph(problem), seed=settings.seed).run(settings.steps * settings.levels.classify.steps)
        return classifier

    def _new_classifier(self) -> nn.Module:
        with RandomState.seeded(self.settings.seed).active():
            return multilayer_perceptron(self.inputs[0].numel(), self.settings.width, self.classes).to(self.device)
