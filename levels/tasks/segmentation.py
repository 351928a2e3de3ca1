"""Task: the class of every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multilevel.levels.tasks.base import Task, TaskData
from multilevel.levels.tasks.losses import IGNORED, LossName, class_weights, cross_entropy
from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers import DataError
from multilevel.solvers.ranges import check_value

_TOGETHER = 64  # images whose logits are resized to their masks at once


class PatchLinear(nn.Module):
    """A linear layer on every patch token: [B, 1 + L, width] to the grid of patches [B, outputs, rows, columns]."""

    def __init__(self, width: int, outputs: int, side: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.side = side

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens[:, 1:]).transpose(1, 2).unflatten(2, (self.side, self.side))


class Segmentation(Task):
    """Cross-entropy of every pixel, with bilinearly interpolated logits of the patches.

    The linear decoder of Segmenter (Strudel et al. 2021, section 3.2). Outputs are logits of the patches [B, classes,
    rows, columns], targets masks int64 [B, H, W]: class 0 is the background, 255 is ignored.

    Args:
        data: see ``TaskData``.
        loss: cross_entropy, or balanced_cross_entropy, which weights each pixel inversely to the training pixels of its
            class.

    Raises:
        SettingError: an unknown loss.
    """

    targets = "mask"
    headline = "mean_iou"
    metric_names = ("mean_iou", "defect_iou", "pixel_accuracy")

    def __init__(self, data: TaskData, loss: str = "cross_entropy") -> None:
        super().__init__(data)
        check_value("task.loss", loss, LossName)
        self.weights = class_weights(data.counts) if loss == "balanced_cross_entropy" else None

    def new_head(self, width: int) -> nn.Module:
        return PatchLinear(width, len(self.data.class_names), self.data.image_size // self.data.patch_size)

    def criterion(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = pixel_logits(outputs, targets)
        with torch.no_grad():
            predicted, marked = logits.argmax(1) > 0, (targets > 0) & (targets != IGNORED)
            together = ((predicted | marked) & (targets != IGNORED)).sum()
            iou = (predicted & marked).sum() / together.clamp(min=1)
        # a batch without any predicted or marked defect is correct
        return cross_entropy(logits, targets, self.weights), {"defect_iou": torch.where(together > 0, iou, 1.0)}

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """mean_iou, defect_iou (everything but the background as one class), pixel_accuracy.

        The intersection over union of a class counts pixels of the whole split (Everingham et al. 2010, section 4.2);
        the mean is over the classes in the training masks or the split.

        Raises:
            DataError: a mask has a class beyond those of the training masks, or every pixel is ignored.
        """
        classes = len(self.data.class_names)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        for batch, masks in zip(outputs.split(_TOGETHER), targets.split(_TOGETHER), strict=True):
            confusion += confusion_matrix(pixel_logits(batch, masks).argmax(1), masks, classes)
        if not confusion.sum():
            raise DataError("every pixel of the split's masks is ignored: intersection over union is not defined")
        union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
        known = ((torch.tensor(self.data.counts) > 0) | (confusion.sum(1) > 0)) & (union > 0)
        missed_or_found = confusion.sum() - confusion[0, 0]
        defect = confusion[1:, 1:].sum() / missed_or_found if missed_or_found else torch.tensor(1.0)
        return {
            "mean_iou": float((confusion.diag()[known] / union[known].double()).mean()),
            "defect_iou": float(defect),
            "pixel_accuracy": float(confusion.trace() / confusion.sum()),
        }


def pixel_logits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits of the patches [B, classes, rows, columns] at the size of the masks [B, H, W]."""
    size = list(targets.shape[-2:])
    return F.interpolate(at_least_float32(outputs), size=size, mode="bilinear", align_corners=False)


def confusion_matrix(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """The number of pixels of each class (row) predicted as each class (column): int64 [classes, classes].

    Raises:
        DataError: a mask has a class number beyond the last class.
    """
    counted = masks != IGNORED
    largest = int(masks.where(counted, 0).max())
    if largest >= classes:
        raise DataError(f"a mask has the class number {largest}; the training images have numbers up to {classes - 1}")
    pairs = masks[counted] * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)
