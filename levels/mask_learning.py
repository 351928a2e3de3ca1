"""Level: let the masking network lower the downstream task's loss on held-out labelled data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from multilevel.levels.tasks import Task
from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class MaskLearning(Problem):
    """The task's loss of the finetuned head on data that trained neither it nor the encoder.

    Its module, the masking network, does not enter: its gradient is all response of the levels below.

    Args:
        task: what the head has learned.
        pretrain: name of the level that holds the encoder.
        finetune: name of the level that holds the head.
    """

    def __init__(
        self, *arguments: Any, task: Task, pretrain: str = "pretrain", finetune: str = "finetune", **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.task = task
        self.pretrain = pretrain
        self.finetune = finetune

    def loss(self, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images, targets = batch
        tokens = getattr(levels, self.pretrain).encode(images)
        return self.task.criterion(getattr(levels, self.finetune)(tokens), targets)
