"""Trains the modules that protocols put on an encoder, with warmup, a cosine schedule and a progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from tqdm import tqdm
from transformers import get_scheduler

from multilevel.recipes.data import ImageLoader, Split
from multilevel.recipes.evaluation.mixing import Mixing
from multilevel.recipes.evaluation.protocols.base import Setup, Trial
from multilevel.solvers import SettingError


def new_loader(part: Split, setup: Setup, batch_size: int, augmented: bool) -> ImageLoader:
    """Shuffled full batches of a part, or one batch of all its images if it has fewer than ``batch_size``."""
    return ImageLoader(
        part,
        setup.data.normalize,
        min(batch_size, len(part)),
        flip=setup.flip and augmented,
        crop_scale=setup.crop_scale if augmented else 1.0,
    )


def fit(
    forward: Callable[[Tensor], Tensor],
    criterion: Callable[[Tensor, Any], Tensor],
    optimizer: torch.optim.Optimizer,
    loader: ImageLoader,
    setup: Setup,
    *,
    updates: int,
    warmup: float,
    name: str,
    setting: str,
    mix: Mixing | None = None,
) -> None:
    """Minimize ``criterion(forward(images), targets)``.

    Args:
        forward: images [B, C, H, W] to outputs [B, ...].
        criterion: outputs and targets to a scalar.
        optimizer: its learning rates are the peak values after the warmup.
        loader: batches of (images, targets).
        setup: device and precision.
        updates: number of updates, each of one batch.
        warmup: share of the updates over which the learning rate rises, before it falls to 0 as a cosine.
        name: label of the progress bar.
        setting: ``evaluation.PROTOCOL``, for messages.
        mix: transforms a batch on the device; None leaves it.

    Raises:
        SettingError: the loss is not finite.
    """
    epochs = math.ceil(updates / len(loader))
    scheduler = get_scheduler("cosine", optimizer, round(warmup * updates), updates)
    # disable=None: no bar where standard error is not a terminal
    with tqdm(range(epochs), desc=name, unit="epoch", leave=False, disable=None) as bar:
        for epoch in bar:
            total = torch.zeros((), device=setup.device)
            count = min(len(loader), updates - epoch * len(loader))
            for batch in islice(loader, count):
                images, targets = tree_map_only(Tensor, lambda tensor: tensor.to(setup.device), batch)
                if mix is not None:
                    images, targets = mix(images, targets)
                with torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.precision == "bf16"):
                    loss = criterion(forward(images), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.detach()
            mean = float(total) / count
            if not math.isfinite(mean):
                rate = optimizer.param_groups[-1]["lr"]
                raise SettingError(f"{setting}.learning_rate", rate, f"a smaller one ({name}: the loss is {mean})")
            bar.set_postfix_str(f"loss {mean:.4g}")


def count_updates(loader: ImageLoader, epochs: int, least_updates: int) -> int:
    """The updates of so many epochs, or of as many more as make ``least_updates``, for fits to few images."""
    return max(epochs, math.ceil(least_updates / len(loader))) * len(loader)


def scored_outputs(forward: Callable[[Tensor], Tensor], trial: Trial) -> Tensor:
    """Outputs float32 [N, ...] on the CPU for the images that a trial scores, in their order, without gradients."""
    setup = trial.setup
    loader = ImageLoader(trial.scored, setup.data.normalize, trial.batch_size, drop_last=False, shuffle=False)
    with torch.no_grad():
        return torch.cat([forward(images.to(setup.device)).float().cpu() for images, _ in loader])
