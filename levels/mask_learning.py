"""Level: train the masking network to lower the downstream task's loss on held-out labelled data."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor

from multilevel.levels.masks.statistics import normalized_entropy
from multilevel.levels.tasks import Task
from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class MaskLearning(Problem):
    """The task's loss of the finetuned head on data that neither the head nor the encoder was trained on.

    Its module, the masking network, enters directly only through the entropy bonus; the rest of its gradient is the
    response of the levels below.

    Args:
        task: the task of the head.
        entropy_bonus: weight of the entropy of each image's probabilities (0 to 1), which is subtracted from the loss.
        pretrain: name of the level with the encoder.
        finetune: name of the level with the head.
    """

    title = "mask learning"
    panels = MappingProxyType({"loss": ("loss", "task_loss")})

    def __init__(
        self,
        *arguments: Any,
        task: Task,
        entropy_bonus: float = 0.0,
        pretrain: str = "pretrain",
        finetune: str = "finetune",
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.task = task
        self.entropy_bonus = entropy_bonus
        self.pretrain = pretrain
        self.finetune = finetune

    def loss(self, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images, targets = batch
        tokens = getattr(levels, self.pretrain).encode(images)
        loss, metrics = self.task.criterion(getattr(levels, self.finetune)(tokens), targets)
        if self.entropy_bonus == 0:
            return loss, metrics
        entropy = normalized_entropy(getattr(levels, self.name)(images).sigmoid())
        return loss - self.entropy_bonus * entropy, {**metrics, "task_loss": loss.detach()}
