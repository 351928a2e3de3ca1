"""Chooses the head of an export by its predictions of labelled images that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from torch import Tensor, nn
from tqdm import tqdm

from multilevel.levels import MaskedAutoencoder
from multilevel.levels.tasks.classification import ClassificationTask, classification_metrics, majority_metrics
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.data import Split
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.evaluation import metric_title, out_of_fold
from multilevel.recipes.evaluation.evaluate import extract_features
from multilevel.recipes.evaluation.fitting import scored_outputs
from multilevel.recipes.evaluation.folds import FEW_FOLDS, Fold, classifiable_folds
from multilevel.recipes.evaluation.protocols import Candidate, Trial
from multilevel.recipes.evaluation.protocols.base import class_probabilities, picture_metrics
from multilevel.recipes.evaluation.protocols.linear_probe import fit_linear_probe
from multilevel.recipes.export.trained import TrainedModel
from multilevel.solvers import DataError

AUTO, OWN, LINEAR_PROBE, FINETUNE = "auto", "own", "linear_probe", "finetune"
HEADS = (OWN, LINEAR_PROBE, FINETUNE)
MOST_TO_FINETUNE = 5000  # labelled images, up to which auto also tries finetuning
DIGITS = 9  # of stored probabilities, by which thresholds are chosen
IMPOSSIBLE = -1e4  # logit of a class without an image to fit to


@dataclass(frozen=True)
class HeadChoice:
    """A trained model with the head to deploy.

    Attributes:
        model: the model.
        head: one of ``HEADS``.
        metric: the metric of the choice.
        scores: its value for each head that was tried, on held-out images.
        held_out: which images these are, in words.
        labels: int64 [M], of images that the chosen head was not fitted to.
        probabilities: float64 [M, classes], of these images, comparable with those of new images: see ``comparable``.
    """

    model: TrainedModel
    head: str
    metric: str
    scores: dict[str, float]
    held_out: str
    labels: np.ndarray
    probabilities: np.ndarray

    def describe(self) -> str:
        """A line about the choice, which says so if the head is no better than the majority class."""
        tried = ", ".join(f"{head} {100 * score:.1f}%" for head, score in self.scores.items())
        line = f"head={self.head}: {metric_title(self.metric)} on {self.held_out}: {tried}"
        reached = majority_metrics(self.labels, self.labels, self.probabilities.shape[1])[self.metric]
        if self.scores[self.head] > reached:
            return line
        return f"{line}. This is not better than always predicting the most frequent class ({100 * reached:.1f}%)"

    def record(self) -> dict[str, Any]:
        """The choice and the held-out probabilities, from which thresholds can be chosen, as JSON."""
        return {
            "head": self.head,
            "metric": self.metric,
            "scores": self.scores,
            "held_out": self.held_out,
            "labels": self.labels.tolist(),
            "probabilities": self.probabilities.tolist(),
        }


def choose_head(recipe: EncoderRecipe, head: str = AUTO) -> HeadChoice | None:
    """Fit the heads to labelled training images, choose the best by the task's headline on held-out ones, and refit it.

    The held-out images are the validation part if there is one, and otherwise each of three folds of the labelled
    training images in turn; photographs of one part (``data.group``) are in one fold. No test image is read. The
    finetuning level's own head is deployed as it was trained; in each fold a new one is trained on frozen features by
    that level's optimizer for as many updates.

    Args:
        recipe: the trained recipe.
        head: one of ``HEADS``, or auto, which tries them all, finetuning only with up to 5,000 labelled images.

    Returns:
        The choice; None if the run has no classifier with one class per image.

    Raises:
        DataError: too few labelled images to hold any out.
    """
    trained = recipe.trained_model()
    if trained.classifier is None:
        return None
    heads = Heads(recipe, trained)
    few = len(trained.data.train) <= MOST_TO_FINETUNE
    tried = [head] if head != AUTO else list(HEADS if few else HEADS[:2])
    predicted = {name: heads.held_out(name) for name in tried}
    scores = {name: classification_metrics(*held_out)[heads.metric] for name, held_out in predicted.items()}
    best = max(scores, key=lambda name: scores[name])  # of equals the first, which is the cheapest
    words = "validation images" if len(trained.data.validation) else f"{len(heads.folds)} folds of training images"
    model = heads.refit(best)
    labels, probabilities = heads.comparable(best) or predicted[best]
    return HeadChoice(model, best, heads.metric, scores, words, labels, probabilities.round(DIGITS))


def score_on_test_images(model: TrainedModel, recipe: EncoderRecipe) -> dict[str, float] | None:
    """The metrics of an exported classifier on the test images; None without any."""
    data, layer = model.data, model.classifier
    if layer is None or not len(data.test):
        return None
    evaluation: Any = recipe.settings.evaluation  # type: ignore[attr-defined]
    every = torch.arange(len(data.test))
    features = extract_features(
        model.autoencoder.features, data, data.test, every, evaluation.batch_size, model.device, "export"
    )
    with torch.no_grad():
        logits = layer(torch.from_numpy(features).to(model.device)).double()
    return picture_metrics(data.test, logits.softmax(1).cpu().numpy())


class Heads:
    """Fits heads to parts of the labelled images.

    Args:
        recipe: the trained recipe.
        trained: its model, with a classifier.
    """

    def __init__(self, recipe: EncoderRecipe, trained: TrainedModel) -> None:
        self.recipe, self.trained, self.setup = recipe, trained, recipe.setup()
        self.evaluation: Any = recipe.settings.evaluation  # type: ignore[attr-defined]
        task = self.setup.task
        assert isinstance(task, ClassificationTask)
        self.task, self.metric = task, self.evaluation.metric or task.headline
        data = trained.data
        count, held = len(data.train), len(data.validation)
        self.images = replace(data.train, indices=torch.cat([data.train.indices, data.validation.indices]))
        self.labels = self.images.labels.numpy()
        self.training = np.arange(count)
        self.folds: Sequence[Fold] = [(self.training, np.arange(count, count + held))]
        if not held:
            groups = data.train.groups.numpy()
            self.folds = classifiable_folds(self.labels, groups, FEW_FOLDS, self.evaluation.seed)
        if not self.folds:
            raise DataError(
                f"{count} labelled training images are too few to hold any out and choose a head by them; expected more"
            )

    def held_out(self, head: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [M] of held-out pictures, and their probabilities float64 [M, classes]."""
        return self._joined(lambda fit, held: self._predicted(head, fit, held))

    def _joined(
        self, fit_predict: Callable[[np.ndarray, np.ndarray], np.ndarray], folds: Sequence[Fold] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        positions, predicted = out_of_fold(fit_predict, folds or self.folds)
        return self._part(positions).pictures.predictions(predicted)

    def comparable(self, head: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels and probabilities of held-out pictures by which thresholds for the deployed head can be chosen.

        Probes of other folds choose other strengths of regularization, on which the scale of probabilities depends, so
        here they all have the strength of the deployed probe. The level's own head is scored as it is, on labelled
        images that it was not fitted to: the validation part, or that of the masking network. None: where there are
        none, and for other heads, ``held_out`` is the best there is.
        """
        if head == LINEAR_PROBE:
            strength = self._deployed_probe[-1].C
            return self._joined(lambda fit, held: self._probabilities(self._probe(fit, strength), held))
        unseen = self.folds[0][1] if len(self.trained.data.validation) else self._masked
        if head == OWN and len(np.unique(self.labels[unseen])) > 1:
            layer = self.trained.classifier
            return self._joined(lambda _, held: self._of_layer(layer, held), [(self.training, unseen)])
        return None

    @property
    def _masked(self) -> np.ndarray:
        """The positions of the masking network's labelled images."""
        return np.flatnonzero(torch.isin(self.images.indices, self.trained.data.mask.indices).numpy())

    def refit(self, head: str) -> TrainedModel:
        """The trained model with a head fitted to all labelled training images; its own head stays as it is."""
        if head == LINEAR_PROBE:
            layer = linear_layer(self._deployed_probe, len(self.task.data.class_names))
            return replace(self.trained, classifier=layer.to(self.setup.device))
        if head == FINETUNE:
            encoder, layer = self._finetuned(self.training)
            return replace(self.trained, autoencoder=encoder, classifier=layer)
        return self.trained

    @cached_property
    def features(self) -> np.ndarray:
        """Frozen features float32 [N, width] of all labelled images."""
        encoder, every = self.trained.autoencoder.features, torch.arange(len(self.images))
        size, device = self.evaluation.batch_size, self.setup.device
        return extract_features(encoder, self.trained.data, self.images, every, size, device, "trained encoder")

    def _predicted(self, head: str, fit: np.ndarray, held: np.ndarray) -> np.ndarray:
        if head == LINEAR_PROBE:
            return self._probabilities(self._probe(fit), held)
        if head == OWN:
            return self._of_layer(self._own(fit), held)
        encoder, layer = self._finetuned(fit)
        logits = scored_outputs(lambda images: layer(encoder.features(images)), self._trial(fit, held))
        return logits.double().softmax(1).cpu().numpy()

    def _probabilities(self, probe: Pipeline, held: np.ndarray) -> np.ndarray:
        return class_probabilities(probe, self.features[held], len(self.task.data.class_names))

    def _of_layer(self, layer: Any, held: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits = layer(torch.from_numpy(self.features[held]).to(self.setup.device))
        return logits.double().softmax(1).cpu().numpy()

    @cached_property
    def _deployed_probe(self) -> Pipeline:
        return self._probe(self.training)

    def _probe(self, fit: np.ndarray, strength: float | None = None) -> Pipeline:
        groups, seed, pictures = self.images.groups.numpy()[fit], self.evaluation.seed, self._part(fit).pictures
        return fit_linear_probe(self.features[fit], self.labels[fit], seed, self.metric, groups, pictures, strength)

    def _own(self, fit: np.ndarray) -> nn.Module:
        """A linear layer trained as the finetuning level trains its head, on frozen features."""
        features = torch.from_numpy(self.features[fit]).to(self.setup.device)
        labels = torch.from_numpy(self.labels[fit]).to(self.setup.device)
        with RandomState.seeded(self.evaluation.seed).active():
            layer = nn.Linear(features.shape[1], len(self.task.data.class_names)).to(self.setup.device)
            train_layer(layer, features, labels, self.recipe, self.task)
        return layer.eval()

    def _finetuned(self, fit: np.ndarray) -> tuple[MaskedAutoencoder, nn.Linear]:
        protocol: Any = self.evaluation.protocol(FINETUNE)
        encoder, head = protocol.train(self._trial(fit, fit))
        return encoder, head.linear

    def _trial(self, fit: np.ndarray, held: np.ndarray) -> Trial:
        encoder, evaluation = self.trained.autoencoder, self.evaluation
        return Trial(
            candidate=Candidate("trained encoder", encoder.features, encoder),
            setup=self.setup,
            fitted=self._part(fit),
            scored=self._part(held),
            features=lambda: (self.features[fit], self.features[held]),
            metric=self.metric,
            neighbours=evaluation.neighbours,
            batch_size=evaluation.batch_size,
            seed=evaluation.seed,
        )

    def _part(self, positions: np.ndarray) -> Split:
        return replace(self.images, indices=self.images.indices[torch.from_numpy(positions)])


def train_layer(
    layer: nn.Linear, features: Tensor, labels: Tensor, recipe: EncoderRecipe, task: ClassificationTask
) -> None:
    """Train a head as the recipe's finetuning level does, but on frozen features.

    Args:
        layer: changed in place.
        features: float32 [N, width].
        labels: int64 [N].
        recipe: its optimizer, schedule and number of updates count.
        task: its loss counts.
    """
    optimizer, scheduler, updates, size = recipe.head_training(layer)
    order = torch.empty(0, dtype=torch.int64)
    for _ in tqdm(range(updates), desc="head", leave=False, disable=None):
        if len(order) < min(size, len(labels)):
            order = torch.randperm(len(labels))
        batch, order = order[:size], order[size:]
        loss = task.criterion(layer(features[batch]), labels[batch])[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def linear_layer(probe: Pipeline, classes: int) -> nn.Linear:
    """A linear probe on standardized features as one layer on the features themselves.

    Args:
        probe: a scaler and a logistic regression, see ``fit_linear_probe``.
        classes: number of classes; those that the probe was not fitted to are never predicted.

    >>> from multilevel.recipes.evaluation.protocols.linear_probe import fit_linear_probe
    >>> features, labels = np.float32([[0, 1], [1, 0], [9, 4], [10, 6]]), np.array([0, 0, 2, 2])
    >>> layer = linear_layer(fit_linear_probe(features, labels, seed=0), 3)
    >>> layer(torch.from_numpy(features)).argmax(1).tolist()
    [0, 0, 2, 2]
    """
    scaler, regression = probe[0], probe[-1]
    weight, bias = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn has one row for both
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    layer = nn.Linear(weight.shape[1], classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(IMPOSSIBLE)
        layer.weight[regression.classes_] = torch.from_numpy(weight).float()
        layer.bias[regression.classes_] = torch.from_numpy(bias - weight @ scaler.mean_).float()
    return layer
