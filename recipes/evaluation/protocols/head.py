"""Protocol: trains the task's head on frozen tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.evaluation.fitting import count_updates, fit, new_loader, scored_outputs
from multilevel.recipes.evaluation.protocols.base import EvaluationProtocol, Share, Trial
from multilevel.solvers.ranges import Count, NonNegative, PositiveNumber


@dataclass(kw_only=True)
class Head(EvaluationProtocol):
    """Trains the task's head on the frozen encoder's tokens by AdamW with the task's loss, on images without
    augmentation.

    Args:
        epochs: passes over the images to fit to.
        least_updates: smallest number of updates; few images are repeated more often.
        batch_size: images in a batch.
        learning_rate: peak learning rate.
        weight_decay: weight decay of all parameters.
        warmup: share of the updates over which the learning rate rises.
    """

    title = "head"
    needs_module = True
    needs_classes = False

    epochs: Count = 50
    least_updates: Count = 500
    batch_size: Count = 64
    learning_rate: PositiveNumber = 1e-2
    weight_decay: NonNegative = 0.0
    warmup: Share = 0.1

    def predict(self, trial: Trial) -> Tensor:
        setup, encoder = trial.setup, trial.candidate.module
        assert encoder is not None

        with RandomState.seeded(trial.seed).active():
            head = setup.task.new_head(encoder.width).to(setup.device)
            loader = new_loader(trial.fitted, setup, self.batch_size, augmented=False)

            def forward(images: Tensor) -> Tensor:
                with torch.no_grad():
                    tokens = encoder.encode(images)
                return head(tokens)

            fit(
                forward,
                lambda outputs, targets: setup.task.criterion(outputs, targets)[0],
                torch.optim.AdamW(head.parameters(), self.learning_rate, weight_decay=self.weight_decay),
                loader,
                setup,
                updates=count_updates(loader, self.epochs, self.least_updates),
                warmup=self.warmup,
                name=f"head, {trial.candidate.name}",
                setting="evaluation.head",
            )
        head.eval()
        return scored_outputs(forward, trial)
