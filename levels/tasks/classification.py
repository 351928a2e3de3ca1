"""Task: one class per image."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import Tensor, nn
from torch.nn import functional as F

from multilevel.levels.tasks.base import Task, TaskData
from multilevel.levels.tasks.losses import LossName, class_weights
from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers.ranges import OneOf, check_value

CLASSIFICATION_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


class PooledLinear(nn.Module):
    """A linear layer on the mean of the patch tokens: [B, 1 + L, width] to [B, outputs]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens[:, 1:].mean(1))


class ClassificationTask(Task):
    """Cross-entropy; outputs are logits [B, classes], targets labels int64 [B] or probabilities [B, classes].

    Args:
        data: see ``TaskData``.
        loss: cross_entropy, or balanced_cross_entropy, which weights each image inversely to the training images of its
            class.
        metric: the headline: accuracy, balanced_accuracy (mean recall of the classes) or macro_f1; None takes accuracy,
            or balanced_accuracy if the loss is balanced.

    Raises:
        SettingError: an unknown loss or metric.
    """

    metric_names = CLASSIFICATION_METRICS
    protocols = ("linear_probe", "knn")
    soft_targets = True

    def __init__(self, data: TaskData, loss: str = "cross_entropy", metric: str | None = None) -> None:
        super().__init__(data)
        check_value("task.loss", loss, LossName)
        balanced = loss == "balanced_cross_entropy"
        self.headline = metric if metric is not None else "balanced_accuracy" if balanced else "accuracy"
        check_value("task.metric", self.headline, Annotated[str, OneOf(*CLASSIFICATION_METRICS)])
        self.weights = class_weights(data.counts) if balanced else None

    def new_head(self, width: int) -> nn.Module:
        return PooledLinear(width, len(self.data.class_names))

    def criterion(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        accuracy = (outputs.detach().argmax(1) == labels).float().mean()
        logits = at_least_float32(outputs)
        weights = None if self.weights is None else self.weights.to(logits.device, logits.dtype)
        return F.cross_entropy(logits, targets, weights), {"accuracy": accuracy}

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """See ``classification_metrics``."""
        return classification_metrics(targets.numpy(), outputs.argmax(1).numpy())


def classification_metrics(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy (mean recall of the classes that occur) and macro F1, by scikit-learn.

    Args:
        labels: int64 [N].
        predicted: int64 [N].
    """
    # recall_score in place of balanced_accuracy_score: the same number, without a warning where a class that does not
    # occur is predicted
    balanced = recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    f1 = f1_score(labels, predicted, average="macro", zero_division=0)
    values = (accuracy_score(labels, predicted), balanced, f1)
    return {name: float(value) for name, value in zip(CLASSIFICATION_METRICS, values, strict=True)}
