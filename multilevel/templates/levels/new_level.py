"""Level: linear regression with a penalty on each weight that another level sets."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class NewLevel(Problem):
    """Mean squared error of this level's module, and a penalty on each of its weights.

    Batches are (inputs [B, D], targets [B, 1]); the module is a torch.nn.Linear(D, 1).

    Args:
        penalty: name of the level whose module has a ``weight`` [1, D], the logarithm of each weight's penalty.
    """

    def __init__(self, *arguments: Any, penalty: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.penalty = penalty

    def loss(self, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        # levels.NAME is that level's module: call it, or any method of it, or read its parameters. Anything random
        # belongs in a method draw(self, levels, batch), whose result arrives here as ``draws``.
        inputs, targets = batch
        module = getattr(levels, self.name)
        error = F.mse_loss(module(inputs), targets)
        penalties = getattr(levels, self.penalty).weight.exp() * module.weight.square()
        return error + penalties.sum(), {"error": error.detach()}
