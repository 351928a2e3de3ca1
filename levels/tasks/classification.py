"""Task: one class per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from multilevel.levels.tasks.base import Task, TaskData
from multilevel.levels.tasks.losses import LOSSES, class_weights
from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers.ranges import OneOf, check_value

CLASSIFICATION_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc")
#: Classes are unbalanced if the largest has more than this many times the images of the smallest.
UNBALANCED = 3
AUTO = "auto"


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
        loss: cross_entropy; balanced_cross_entropy, which weights each image inversely to the training images of its
            class; or auto, which is balanced if the classes are unbalanced (see ``unbalanced``).
        metric: the headline, one of ``CLASSIFICATION_METRICS``. auto takes macro_roc_auc for two classes, else
            balanced_accuracy if the classes are unbalanced or the loss is balanced, else accuracy. None, for runs from
            before auto, takes balanced_accuracy if the loss is balanced, else accuracy.

    Raises:
        SettingError: an unknown loss or metric.

    >>> task = ClassificationTask(TaskData(("good", "dent", "scratch"), (90, 20, 5)), loss="auto", metric="auto")
    >>> task.loss, task.headline
    ('balanced_cross_entropy', 'balanced_accuracy')
    """

    metric_names = CLASSIFICATION_METRICS
    protocols = ("linear_probe", "knn")
    soft_targets = True

    def __init__(self, data: TaskData, loss: str = "cross_entropy", metric: str | None = None) -> None:
        super().__init__(data)
        check_value("task.loss", loss, Annotated[str, OneOf(AUTO, *LOSSES)])
        check_value("task.metric", metric, Annotated[str | None, OneOf(AUTO, *CLASSIFICATION_METRICS)])
        skewed = AUTO in (loss, metric) and unbalanced(data.counts)
        self.loss = loss if loss != AUTO else "balanced_cross_entropy" if skewed else "cross_entropy"
        balanced = self.loss == "balanced_cross_entropy"
        suited = "balanced_accuracy" if balanced or (metric == AUTO and skewed) else "accuracy"
        if metric == AUTO and len(data.class_names) == 2:
            suited = "macro_roc_auc"
        self.headline = suited if metric in (AUTO, None) else metric
        self.weights = class_weights(data.counts) if balanced else None
        self.notes = _notes(data, loss, metric, self.loss, self.headline)

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
        return classification_metrics(targets.numpy(), outputs.double().softmax(1).numpy())


def unbalanced(counts: Sequence[int]) -> bool:
    """Whether the largest class has more than three times the images of the smallest that has any.

    >>> unbalanced([90, 30, 0]), unbalanced([91, 30, 0])
    (False, True)
    """
    present = [count for count in counts if count]
    return bool(present) and max(present) > UNBALANCED * min(present)


def classification_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1 and the macro area under the ROC curve, by scikit-learn.

    An image's prediction is the class with the highest score. Balanced accuracy (mean recall) and the area under the
    ROC curve (each class against the rest; for two classes the usual one) are means over the classes that occur in
    ``labels``; a class without a scored image is left out. There is no macro_roc_auc if only one class occurs.

    Args:
        labels: int64 [N].
        scores: float [N, classes]; for areas comparable between classifiers, probabilities.

    >>> scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    >>> classification_metrics(np.array([0, 0, 1, 1]), scores)["macro_roc_auc"]
    0.75
    """
    predicted, present = scores.argmax(1), np.unique(labels)
    # recall_score in place of balanced_accuracy_score: the same number, without a warning where a class that does not
    # occur is predicted
    metrics = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": recall_score(labels, predicted, labels=present, average="macro", zero_division=0),
        "macro_f1": f1_score(labels, predicted, average="macro", zero_division=0),
    }
    if len(present) > 1:
        metrics["macro_roc_auc"] = roc_auc_score(labels[:, None] == present, scores[:, present], average="macro")
    return {name: float(value) for name, value in metrics.items()}


def majority_metrics(known: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """The metrics of equal scores for all images, the highest for the class that is most frequent among known labels.

    Args:
        known: int64 [M].
        labels: int64 [N], of the scored images.
        classes: number of classes.

    >>> majority_metrics(np.array([0, 1, 1]), np.array([0, 0, 0, 1]), classes=2)["accuracy"]
    0.25
    """
    scores = np.zeros((len(labels), classes))
    scores[:, np.bincount(known).argmax()] = 1
    return classification_metrics(labels, scores)


def _notes(data: TaskData, loss: str, metric: str | None, taken: str, headline: str) -> tuple[str, ...]:
    """A line that says what auto has taken, unless it is plain cross-entropy and accuracy."""
    settings = [f"task.loss={taken}"] if loss == AUTO and taken != "cross_entropy" else []
    settings += [f"task.metric={headline}"] if metric == AUTO and headline != "accuracy" else []
    if not settings:
        return ()
    why = "two classes"
    if unbalanced(data.counts):
        named = {count: name for name, count in zip(data.class_names, data.counts, strict=True) if count}
        most, fewest = max(named), min(named)
        why = f"from {fewest} ({named[fewest]}) to {most} ({named[most]}) labelled images of a class"
    elif len(data.class_names) > 2:
        why = f"task.loss={taken}"
    return (f"{why}: {' and '.join(settings)}, unless set otherwise",)
