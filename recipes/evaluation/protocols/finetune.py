"""Protocol: finetunes the whole encoder with the task's head."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multilevel.levels import MaskedAutoencoder
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.data import ImageLoader
from multilevel.recipes.evaluation.drop_path import add_drop_path
from multilevel.recipes.evaluation.fitting import count_updates, fit, new_loader, scored_outputs
from multilevel.recipes.evaluation.mixing import Mixing
from multilevel.recipes.evaluation.protocols.base import EvaluationProtocol, Share, Trial
from multilevel.solvers.ranges import Count, NonNegative, PositiveNumber, PositiveShare

_LAYER = re.compile(r"layers\.(\d+)\.")
UNDECAYED = ("cls_token", "position_embeddings")


@dataclass(kw_only=True)
class FinetuneProtocol(EvaluationProtocol):
    """End-to-end finetuning as in He et al. 2022, appendix A.1: AdamW with betas 0.9 and 0.999, layer-wise decay of the
    learning rate (Clark et al. 2020, Bao et al. 2022), warmup, cosine, label smoothing, mixup, cutmix, drop path.

    Differences from the paper: 20 epochs of batches of 128 instead of 100 of 1024, but at least 500 updates; random
        crops and mirror images (data.crop_scale and data.flip) instead of RandAugment; the task's own head, on the
        tokens after the final norm. Label smoothing, mixup and cutmix apply only to classification, since other tasks'
        targets cannot be mixed.

    Args:
        epochs: passes over the images to fit to.
        least_updates: smallest number of updates; few images are repeated more often.
        batch_size: images in a batch.
        learning_rate: learning rate for 256 images, scaled by batch_size / 256. The paper's value for a ViT-B; smaller
            encoders need more.
        weight_decay: weight decay of matrices.
        layer_decay: factor of the learning rate from each layer to the one below.
        warmup: share of the updates over which the learning rate rises.
        label_smoothing: amount of label smoothing, see Mixing.
        mixup: strength of mixup, see Mixing; 0 is off.
        cutmix: strength of cutmix, see Mixing; 0 is off.
        drop_path: drop path rate of the last layer; it rises linearly from 0 at the first.
    """

    title = "finetuning"
    needs_module = True
    needs_classes = False

    epochs: Count = 20
    least_updates: Count = 500
    batch_size: Count = 128
    learning_rate: PositiveNumber = 5e-4
    weight_decay: NonNegative = 0.05
    layer_decay: PositiveShare = 0.75
    warmup: Share = 0.05  # the paper's 5 of 100 epochs
    label_smoothing: Share = 0.1
    mixup: NonNegative = 0.8
    cutmix: NonNegative = 1.0
    drop_path: Share = 0.1

    def predict(self, trial: Trial) -> Tensor:
        encoder, head = self.train(trial)
        return scored_outputs(lambda images: head(encoder.encode(images)), trial)

    def train(self, trial: Trial) -> tuple[MaskedAutoencoder, nn.Module]:
        """Train a copy of the candidate's encoder, and a head on its tokens, on ``trial.fitted``."""
        setup, task = trial.setup, trial.setup.task
        with RandomState.seeded(trial.seed).active():
            encoder: MaskedAutoencoder = copy.deepcopy(trial.candidate.module)  # type: ignore[assignment]
            head = task.new_head(encoder.width).to(setup.device)
            add_drop_path(encoder, self.drop_path)
            model = nn.ModuleList([encoder, head]).train()
            loader = new_loader(trial.fitted, setup, self.batch_size, augmented=True)
            rate = self.learning_rate * loader.batch_size / 256
            groups = parameter_groups(encoder, head, rate, self.weight_decay, self.layer_decay)
            mixing = Mixing(len(setup.data.class_names), self.label_smoothing, self.mixup, self.cutmix)

            def forward(images: Tensor) -> Tensor:
                return head(encoder.encode(images))

            fit(
                forward,
                lambda outputs, targets: task.criterion(outputs, targets)[0],
                torch.optim.AdamW(groups, betas=(0.9, 0.999)),
                loader,
                setup,
                updates=self.updates(loader),
                warmup=self.warmup,
                name=f"{self.title}, {trial.candidate.name}",
                setting="evaluation.finetune",
                mix=mixing if task.soft_targets else None,
            )
        model.eval()
        return encoder, head

    def updates(self, loader: ImageLoader) -> int:
        """The number of updates."""
        return count_updates(loader, self.epochs, self.least_updates)


def parameter_groups(
    encoder: MaskedAutoencoder, head: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """One group per parameter, with learning rate ``learning_rate * layer_decay ** (depth + 1 - layer)``.

    Layers count from 0 (the embeddings) over 1 to depth (the blocks) to depth + 1 (the final norm and the head).
    Vectors, the class token and the positions have no weight decay. The decoder is not trained.
    """
    vit = encoder.mae.vit
    depth = len(vit.layers)
    groups = []
    for name, parameter in [*vit.named_parameters(), *head.named_parameters(prefix="head")]:
        if not parameter.requires_grad:
            continue
        block = _LAYER.match(name)
        layer = int(block[1]) + 1 if block else 0 if name.startswith("embeddings.") else depth + 1
        undecayed = parameter.ndim <= 1 or name.endswith(UNDECAYED)
        groups.append(
            {
                "params": [parameter],
                "lr": learning_rate * layer_decay ** (depth + 1 - layer),
                "weight_decay": 0.0 if undecayed else weight_decay,
                "name": name,
            }
        )
    return groups
