"""Overlaps of boxes and non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes [N, 4] and [M, 4] (left, top, right, bottom): [N, M]; 0 for empty boxes."""
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])
    opposite = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return torch.where(union > 0, shared / union, 0.0)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Keep the boxes that overlap no better kept box by more than ``overlap``, best first.

    Args:
        boxes: [N, 4] of left, top, right, bottom.
        scores: [N].
        overlap: largest allowed intersection over union.

    Returns:
        The indices of the kept boxes, int64 [M].
    """
    order = scores.argsort(descending=True, stable=True)
    conflicts = (overlaps(boxes[order], boxes[order]) > overlap).tolist()
    chosen: list[int] = []
    for number, row in enumerate(conflicts):
        if not any(row[better] for better in chosen):
            chosen.append(number)
    return order[chosen]
