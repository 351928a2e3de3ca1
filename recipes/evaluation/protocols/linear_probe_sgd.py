"""Protocol: the MAE paper's linear probe, trained by SGD on augmented images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.evaluation.fitting import count_updates, fit, new_loader, scored_outputs
from multilevel.recipes.evaluation.lars import LARS
from multilevel.recipes.evaluation.protocols.base import EvaluationProtocol, Share, Trial
from multilevel.solvers.ranges import Count, OneOf, PositiveNumber

MOMENTUM = 0.9


@dataclass(kw_only=True)
class LinearProbeSGD(EvaluationProtocol):
    """Linear probing as in He et al. 2022, appendix A.1: a linear layer after a BatchNorm without affine parameters,
    on frozen features of images cropped and mirrored at random; no weight decay, warmup, cosine.

    Differences from the paper: 30 epochs of batches of 128 instead of 90 of 16,384, and therefore SGD instead of LARS,
        which suits such large batches; features are the mean of the patch tokens, as in the other protocols, not the
        class token; crops keep data.crop_scale of the area, since small images have little to spare.

    Args:
        epochs: passes over the images to fit to.
        least_updates: smallest number of updates; few images are repeated more often.
        batch_size: images in a batch.
        learning_rate: learning rate for 256 images, scaled by batch_size / 256.
        optimizer: sgd or lars, with momentum 0.9.
        warmup: share of the updates over which the learning rate rises.
    """

    title = "linear probe, sgd"
    needs_module = True

    epochs: Count = 30
    least_updates: Count = 500
    batch_size: Count = 128
    learning_rate: PositiveNumber = 0.1
    optimizer: Annotated[str, OneOf("sgd", "lars")] = "sgd"
    warmup: Share = 0.1  # about the paper's 10 of 90 epochs

    def predict(self, trial: Trial) -> np.ndarray:
        setup, module = trial.setup, trial.candidate.module
        assert module is not None
        with RandomState.seeded(trial.seed).active():
            probe = new_probe(module.width, len(setup.data.class_names)).to(setup.device)
            loader = new_loader(trial.fitted, setup, self.batch_size, augmented=True)
            rate = self.learning_rate * loader.batch_size / 256
            kind = LARS if self.optimizer == "lars" else torch.optim.SGD

            def forward(images: Tensor) -> Tensor:
                with torch.no_grad():
                    features = trial.candidate.features(images)
                return probe(features.float())

            fit(
                forward,
                nn.functional.cross_entropy,
                kind(probe.parameters(), lr=rate, momentum=MOMENTUM),
                loader,
                setup,
                updates=count_updates(loader, self.epochs, self.least_updates),
                warmup=self.warmup,
                name=f"linear probe, {trial.candidate.name}",
                setting="evaluation.linear_probe_sgd",
            )
        probe.eval()
        return scored_outputs(forward, trial).double().softmax(1).numpy()


def new_probe(width: int, classes: int) -> nn.Sequential:
    """BatchNorm without affine parameters, then a linear layer with small initial weights, as in the MAE paper's
    code."""
    linear = nn.Linear(width, classes)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear)
