"""Level: train a task's head on the pretrained encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multilevel.levels.tasks import Task
from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class Finetune(Problem):
    """The task's loss of a head on the encoder's tokens. Its module is only the head.

    Batches are (images [B, C, H, W], targets of the task).

    Args:
        task: the task of the head.
        pretrain: name of the level with the encoder.
        through_encoder: whether hypergradients pass from this level to the encoder. If not, the head is still trained,
            and the encoder counts as a constant.
    """

    title = "finetuning"

    def __init__(
        self, *arguments: Any, task: Task, pretrain: str = "pretrain", through_encoder: bool = True, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.task = task
        self.pretrain = pretrain
        self.through_encoder = through_encoder

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> Tensor:
        """The head's outputs [B, ...]."""
        with torch.set_grad_enabled(self.through_encoder and torch.is_grad_enabled()):
            tokens = getattr(levels, self.pretrain).encode(batch[0])
        return getattr(levels, self.name)(tokens)

    def criterion(self, outputs: Tensor, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.criterion(outputs, batch[1])
