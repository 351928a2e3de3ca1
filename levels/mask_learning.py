"""Level: let the masking network lower the classifier's loss on held-out labelled data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from multilevel.levels.classification import cross_entropy
from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class MaskLearning(Problem):
    """Cross-entropy of the finetuned classifier on data that trained neither it nor the encoder.

    Its module, the masking network, does not enter: its gradient is all response of the levels below.

    Args:
        pretrain: name of the level that holds the encoder.
        finetune: name of the level that holds the head.
    """

    def __init__(
        self, *arguments: Any, pretrain: str = "pretrain", finetune: str = "finetune", **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.pretrain = pretrain
        self.finetune = finetune

    def loss(self, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        features = getattr(levels, self.pretrain).features(images)
        return cross_entropy(getattr(levels, self.finetune)(features), labels)
