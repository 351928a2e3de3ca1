"""Levels: learn a main task with few labels, and auxiliary tasks with learned loss weights."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multilevel.problems import Problem
from multilevel.problems.levels import Levels

#: The rotation of an image (Gidaris et al. 2018), the hidden half of its pixels, and a
#: random label for each image, which can only be memorized.
AUXILIARY_TASKS = ("rotation", "hidden_pixels", "random_labels")
TURNS = 4


class MultiTaskNetwork(nn.Module):
    """Two hidden layers shared by all tasks, and a linear head for each task.

    Args:
        shape: (C, H, W) of an image.
        width: width of the hidden layers.
        classes: number of classes of the main task, and of the random labels.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, classes: int) -> None:
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        self.trunk = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        outputs = {"main": classes, "rotation": TURNS, "hidden_pixels": pixels, "random_labels": classes}
        self.heads = nn.ModuleDict({task: nn.Linear(width, count) for task, count in outputs.items()})

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to the main task's logits [B, classes]."""
        return self.heads["main"](self.trunk(images))

    def outputs(self, inputs: list[Tensor]) -> list[Tensor]:
        """Each head's outputs for its own images [B, C, H, W]: logits [B, classes], or pixels [B, C * H * W]."""
        features = self.trunk(torch.cat(inputs)).split([len(images) for images in inputs])
        return [head(part) for head, part in zip(self.heads.values(), features, strict=True)]


class AuxiliaryLearning(Problem):
    """The main task's cross-entropy, plus the weighted sum of the auxiliary losses.

    Batches are (images [B, C, H, W], random labels int64 [B], labelled images [B, C, H, W], classes int64 [B]).

    Args:
        weights: name of the level whose module gives the weights [tasks], in the order of ``AUXILIARY_TASKS``; or
            the weights themselves.
    """

    panels = MappingProxyType({"losses of the auxiliary tasks": AUXILIARY_TASKS})

    def __init__(self, *arguments: Any, weights: str | Tensor, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.weights = weights

    def draw(self, levels: Levels, batch: Any) -> dict[str, Tensor]:
        """Draw how many 90-degree turns to give each image, int64 [B], and the hidden pixels, bool [B, C, H, W]."""
        images = batch[0]
        turns = torch.randint(TURNS, (len(images),), device=images.device)
        return {"turns": turns, "hidden": torch.rand_like(images) < 0.5}

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> list[Tensor]:
        """Logits of the main task, then the outputs of the auxiliary tasks."""
        images, _, labelled, _ = batch
        visible = images.masked_fill(draws["hidden"], 0.0)
        return getattr(levels, self.name).outputs([labelled, rotated(images, draws["turns"]), visible, images])

    def criterion(self, outputs: Any, levels: Levels, batch: Any, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        (images, random_labels, _, classes), (logits, turns, pixels, guesses) = batch, outputs
        hidden = draws["hidden"].flatten(1)
        losses = {
            "rotation": F.cross_entropy(turns, draws["turns"]),
            "hidden_pixels": F.mse_loss(pixels[hidden], images.flatten(1)[hidden]),
            "random_labels": F.cross_entropy(guesses, random_labels),
        }
        weights = getattr(levels, self.weights)() if isinstance(self.weights, str) else self.weights
        auxiliary = torch.stack([losses[task] for task in AUXILIARY_TASKS])
        metrics = {task: loss.detach() for task, loss in losses.items()}
        return F.cross_entropy(logits, classes) + (weights * auxiliary).sum(), metrics


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Square images [B, C, H, H], each rotated by 90 degrees ``turns`` times (int64 [B], 0 to 3)."""
    ways = torch.stack([images.rot90(count, (2, 3)) for count in range(TURNS)])
    return ways[turns, torch.arange(len(images), device=images.device)]
