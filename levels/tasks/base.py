"""Downstream tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class TaskData:
    """The facts about the data that a task needs.

    Args:
        class_names: the classes, by number.
        counts: for each class in the labelled training images, the number of images, pixels of masks, or boxes.
        image_size: pixels per side; 0 without images.
        patch_size: pixels per side; 0 without images.
    """

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    image_size: int = 0
    patch_size: int = 0


class Task(ABC):
    """A head on the encoder's tokens, its loss, and the metrics of its outputs.

    A task's options are the keyword arguments of its constructor.

    Args:
        data: the data that the task is for.

    Attributes:
        targets: kind of targets that the data must provide for each image. ``labels``: int64 [B]; ``multilabels``:
            float32 [B, classes] of 0 and 1; ``mask``: int64 [B, H, W], 255 for pixels to ignore; ``boxes``: float32 [B,
            K, 5] of left, top, right, bottom in pixels, and class, rows of -1 after the last box.
        headline: the metric that summarizes the quality of outputs in one number; higher is better.
        metric_names: the keys of the dictionary that ``metrics`` returns.
        protocols: default protocols if ``evaluation.protocols`` names none.
        soft_targets: whether the criterion also accepts probabilities [B, classes] as targets, as some classifications
            do.
        notes: lines for the screen about choices that settings left open.
    """

    targets: ClassVar[str] = "labels"
    headline: str
    metric_names: ClassVar[tuple[str, ...]]
    protocols: ClassVar[tuple[str, ...]] = ("head",)
    soft_targets: ClassVar[bool] = False
    notes: tuple[str, ...] = ()

    def __init__(self, data: TaskData) -> None:
        self.data = data

    @abstractmethod
    def new_head(self, width: int) -> nn.Module:
        """Create a module that maps tokens [B, 1 + L, width], class token first and L patches in row-major order, to
        outputs [B, ...]."""

    @abstractmethod
    def criterion(self, outputs: Tensor, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar convex in the outputs, and the metrics of the batch."""

    @abstractmethod
    def metrics(self, outputs: Tensor, targets: Any) -> dict[str, float]:
        """The task's metrics of the outputs for a whole split on the CPU, including ``headline``."""
