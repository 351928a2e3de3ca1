"""Task: any number of classes per image."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn
from torch.nn import functional as F

from multilevel.levels.tasks.base import Task
from multilevel.levels.tasks.classification import PooledLinear
from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers import DataError


class Multilabel(Task):
    """Binary cross-entropy for each class; outputs are logits [B, classes], targets float32 [B, classes] of 0 and 1."""

    targets = "multilabels"
    headline = "mean_average_precision"
    metric_names = ("mean_average_precision", "macro_f1")

    def new_head(self, width: int) -> nn.Module:
        return PooledLinear(width, len(self.data.class_names))

    def criterion(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = at_least_float32(outputs)
        accuracy = ((logits.detach() > 0) == (targets > 0.5)).float().mean()
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype)), {"label_accuracy": accuracy}

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """mean_average_precision and macro_f1 (a class is predicted if its probability exceeds one half).

        Both are means over the classes that occur in the split.

        Raises:
            DataError: no image has a class.
        """
        present = (targets > 0.5).any(0)
        if not present.any():
            raise DataError("no image of the split has any class: average precision is not defined")
        truth, scores = (targets[:, present] > 0.5).numpy().astype(np.int64), outputs[:, present].numpy()
        return {
            "mean_average_precision": float(average_precision_score(truth, scores, average="macro")),
            "macro_f1": float(f1_score(truth, scores > 0, average="macro", zero_division=0)),
        }
