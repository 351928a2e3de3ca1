"""The interface of evaluation protocols."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from multilevel.levels import MaskedAutoencoder
from multilevel.levels.tasks import Task
from multilevel.recipes.data import ImageData, Split
from multilevel.solvers.ranges import AtLeast, Below

Share = Annotated[float, AtLeast(0), Below(1)]
#: Normalized images [B, C, H, W] to features [B, D].
Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidate:
    """An encoder to evaluate.

    Args:
        name: what scores call it.
        features: what protocols for frozen features see.
        module: what finetuning trains a copy of; None leaves such protocols out, as for raw pixels.
    """

    name: str
    features: Encoder
    module: MaskedAutoencoder | None = None


@dataclass(frozen=True)
class Setup:
    """The data, task and device that all evaluations of a run share.

    Args:
        data: the set.
        task: what the head learns where a protocol trains the task's.
        device: where the encoders are.
        precision: float32, or bf16 (training under autocast).
        flip: whether training images may be mirrored.
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
    """One candidate, the images that a protocol is fitted to, and those that it is scored on.

    Args:
        candidate: the encoder.
        setup: of the run.
        fitted: labelled training images.
        scored: of the test or the validation split.
        features: called for frozen features float32 [N, D] of both, in their order.
        neighbours, batch_size, seed: see ``EvaluationSettings``.
    """

    candidate: Candidate
    setup: Setup
    fitted: Split
    scored: Split
    features: Callable[[], tuple[np.ndarray, np.ndarray]]
    neighbours: int
    batch_size: int
    seed: int


class EvaluationProtocol(ABC):
    """A way to score an encoder: a dataclass whose fields are its options, ``evaluation.PROTOCOL.OPTION``.

    Attributes:
        title: what tables call it.
        needs_module: whether it takes an encoder's module, not only its features.
        needs_classes: whether it predicts the one class of an image, whatever the task; otherwise it is the task's.
    """

    title: ClassVar[str]
    needs_module: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = True

    @abstractmethod
    def metrics(self, trial: Trial) -> dict[str, float]:
        """Fit to ``trial.fitted`` and score on ``trial.scored``; nothing of the candidate changes."""
