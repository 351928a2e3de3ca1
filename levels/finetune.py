"""Level: train a classifier on the pretrained encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multilevel.levels.classification import cross_entropy
from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class Finetune(Problem):
    """Cross-entropy of a head on the encoder's features. Its module is the head alone: features to logits.

    Args:
        pretrain: name of the level that holds the encoder.
        through_encoder: let hypergradients pass from this level on to the encoder; without it the head is
            trained all the same, and the encoder counts as a constant.
    """

    def __init__(
        self, *arguments: Any, pretrain: str = "pretrain", through_encoder: bool = True, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.pretrain = pretrain
        self.through_encoder = through_encoder

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> Tensor:
        """Logits [B, classes]."""
        with torch.set_grad_enabled(self.through_encoder and torch.is_grad_enabled()):
            features = getattr(levels, self.pretrain).features(batch[0])
        return getattr(levels, self.name)(features)

    def criterion(self, outputs: Tensor, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(outputs, batch[1])
