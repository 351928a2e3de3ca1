"""Cross-entropy and accuracy, for the levels that classify."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from multilevel.levels.precision import at_least_float32


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of logits [B, classes] and labels int64 [B], and the share of labels hit."""
    accuracy = (logits.detach().argmax(1) == labels).float().mean()
    return F.cross_entropy(at_least_float32(logits), labels), {"accuracy": accuracy}
