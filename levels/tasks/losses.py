"""Cross-entropy, plain and balanced between classes, and the check of a task's options."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers import SettingError

LOSSES = ("cross_entropy", "balanced_cross_entropy")
IGNORED = 255  # the usual mark of pixels that do not count, as in Pascal VOC


def check_choice(setting: str, got: object, choices: Sequence[str]) -> None:
    """Raise SettingError unless ``got`` is one of the choices."""
    if got not in choices:
        raise SettingError(setting, got, f"one of {', '.join(choices)}")


def class_weights(counts: Sequence[int]) -> Tensor:
    """Weights inverse to the counts, of mean 1 over the classes that occur: float64 [classes]; others have 0."""
    found = torch.tensor(counts, dtype=torch.float64)
    present = found > 0
    inverse = torch.where(present, 1 / found.clamp(min=1), 0.0)
    return inverse * present.sum() / inverse.sum()


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Mean cross-entropy, weighted by the target's class where weights are given; 0 where nothing counts.

    Args:
        logits: [B, classes, ...].
        targets: int64 [B, ...], 255 where a pixel does not count.
        weights: [classes], on the CPU.
    """
    logits = at_least_float32(logits)
    if weights is not None:
        weights = weights.to(logits.device, logits.dtype)
    total = F.cross_entropy(logits, targets, weights, ignore_index=IGNORED, reduction="sum")
    counted = targets != IGNORED
    share = counted if weights is None else weights[targets.where(counted, 0)] * counted
    return total / share.sum().to(logits.dtype).clamp(min=torch.finfo(logits.dtype).tiny)
