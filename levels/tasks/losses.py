"""Cross-entropy, plain or balanced between classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers.ranges import OneOf

LOSSES = ("cross_entropy", "balanced_cross_entropy")
LossName = Annotated[str, OneOf(*LOSSES)]
IGNORED = 255  # the usual label of ignored pixels, as in Pascal VOC


def class_weights(counts: Sequence[int]) -> Tensor:
    """Weights inverse to the counts, with mean 1 over the classes that occur and 0 for the others: float64
    [classes]."""
    occurrences = torch.tensor(counts, dtype=torch.float64)
    present = occurrences > 0
    inverse = torch.where(present, 1 / occurrences.clamp(min=1), 0.0)
    return inverse * present.sum() / inverse.sum()


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Mean cross-entropy, optionally weighted by the target's class; 0 if every target is ignored.

    Args:
        logits: [B, classes, ...].
        targets: int64 [B, ...], 255 for pixels to ignore.
        weights: [classes], on the CPU.
    """
    logits = at_least_float32(logits)
    if weights is not None:
        weights = weights.to(logits.device, logits.dtype)
    total = F.cross_entropy(logits, targets, weights, ignore_index=IGNORED, reduction="sum")
    counted = targets != IGNORED
    share = counted if weights is None else weights[targets.where(counted, 0)] * counted
    return total / share.sum().to(logits.dtype).clamp(min=torch.finfo(logits.dtype).tiny)
