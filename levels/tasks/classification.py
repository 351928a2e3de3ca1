"""Task: one class an image."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from multilevel.levels.precision import at_least_float32
from multilevel.levels.tasks.base import Task


class PooledLinear(nn.Module):
    """A linear layer on the mean of the patch tokens: [B, 1 + L, width] to [B, outputs]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens[:, 1:].mean(1))


class Classification(Task):
    """Cross-entropy; outputs are logits [B, classes], targets labels int64 [B] or probabilities [B, classes]."""

    headline = "accuracy"
    protocols = ("linear_probe", "knn")
    soft_targets = True

    def new_head(self, width: int) -> nn.Module:
        return PooledLinear(width, len(self.data.class_names))

    def criterion(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        accuracy = (outputs.detach().argmax(1) == labels).float().mean()
        return F.cross_entropy(at_least_float32(outputs), targets), {"accuracy": accuracy}

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"accuracy": float((outputs.argmax(1) == targets).double().mean())}
