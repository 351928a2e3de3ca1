"""The interface of evaluation protocols."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from multilevel.levels import MaskedAutoencoder
from multilevel.levels.tasks import Task
from multilevel.levels.tasks.classification import classification_metrics
from multilevel.recipes.data import ImageData, Split
from multilevel.solvers.ranges import AtLeast, Below

Share = Annotated[float, AtLeast(0), Below(1)]
#: Normalized images [B, C, H, W] to features [B, D].
Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidate:
    """An encoder to evaluate.

    Args:
        name: its name in scores.
        features: computes frozen features.
        module: the module that finetuning copies and trains; None skips protocols that need one, as for raw pixels.
        own: the name and the protocol of its only score; None: a score by each of the evaluation's protocols.
    """

    name: str
    features: Encoder
    module: MaskedAutoencoder | None = None
    own: tuple[str, EvaluationProtocol] | None = None

    def protocols(self, shared: dict[str, EvaluationProtocol]) -> dict[str, EvaluationProtocol]:
        """The protocols to score it by, of those of the evaluation."""
        if self.own is not None:
            return dict([self.own])
        return {name: kind for name, kind in shared.items() if self.module is not None or not kind.needs_module}


@dataclass(frozen=True)
class Setup:
    """The data, task and device that all evaluations of a run share.

    Args:
        data: the data set.
        task: the task of the head, for protocols that train one.
        device: device of the encoders.
        precision: float32, or bf16 (training under autocast).
        flip: whether to mirror training images at random.
        crop_scale: smallest share of a training image's area that a random crop keeps.
    """

    data: ImageData
    task: Task
    device: torch.device
    precision: str = "float32"
    flip: bool = False
    crop_scale: float = 1.0


@dataclass(frozen=True)
class Trial:
    """One candidate, with the images to fit a protocol to and the images to score it on.

    Args:
        candidate: the encoder.
        setup: setup of the run.
        fitted: labelled training images.
        scored: images of the test or the validation split.
        features: returns the frozen features float32 [N, D] of both, in order.
        metric: the metric in the table, for protocols that choose by it.
        neighbours, batch_size, seed: see ``EvaluationSettings``.
    """

    candidate: Candidate
    setup: Setup
    fitted: Split
    scored: Split
    features: Callable[[], tuple[np.ndarray, np.ndarray]]
    metric: str
    neighbours: int
    batch_size: int
    seed: int


class EvaluationProtocol(ABC):
    """A way to score an encoder: a dataclass whose fields are its options, ``evaluation.PROTOCOL.OPTION``.

    A protocol predicts images; ``metrics`` scores pictures, which are the same unless images are tiles of them.

    Attributes:
        title: its name in tables.
        needs_module: whether it needs an encoder's module, not only its features.
        needs_classes: whether it predicts the single class of an image whatever the task; otherwise it learns the
            task's targets.
    """

    title: ClassVar[str]
    needs_module: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = True

    @abstractmethod
    def predict(self, trial: Trial) -> Any:
        """Fit to ``trial.fitted`` and predict ``trial.scored``; nothing of the candidate changes.

        Returns:
            If ``needs_classes``, probabilities ``[N, classes]``, an array; otherwise the task's outputs ``[N, ...]``, a
            tensor on the CPU.
        """

    def settled(self, trial: Trial) -> EvaluationProtocol:
        """The protocol with whatever it would choose by the images of a trial: it chooses the same for other images."""
        return self

    @classmethod
    def takes_features(cls) -> bool:
        """Whether it predicts classes from frozen features."""
        return cls.needs_classes and not cls.needs_module

    def metrics(self, trial: Trial) -> dict[str, float]:
        """The metrics of ``predict``: of single classes if ``needs_classes``, otherwise the task's."""
        outputs = self.predict(trial)
        if self.needs_classes:
            return picture_metrics(trial.scored, outputs)
        if trial.setup.data.tiling is not None:  # of a classification, whose outputs are logits
            return picture_metrics(trial.scored, outputs.double().softmax(1).numpy())
        return trial.setup.task.metrics(outputs, trial.scored.targets(torch.arange(len(trial.scored))))


def picture_metrics(part: Split, probabilities: np.ndarray) -> dict[str, float]:
    """``classification_metrics`` of the pictures of a part; with ``data.tiles`` the worst tile stands for each.

    Args:
        part: N images.
        probabilities: float [N, classes].
    """
    return classification_metrics(*part.pictures.predictions(probabilities))


def class_probabilities(classifier: Any, features: np.ndarray, classes: int) -> np.ndarray:
    """The probabilities [M, classes] that a fitted classifier of scikit-learn gives features [M, D]; 0 for classes that
    it was not fitted to."""
    probabilities = np.zeros((len(features), classes))
    probabilities[:, classifier.classes_] = classifier.predict_proba(features)
    return probabilities
