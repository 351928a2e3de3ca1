"""Task: boxes around objects, with a class for each box."""

from __future__ import annotations

import importlib.util
import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multilevel.levels.tasks.average_precision import METRICS, average_precision
from multilevel.levels.tasks.base import Task, TaskData
from multilevel.levels.tasks.boxes import non_maximum_suppression
from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers import SettingError
from multilevel.solvers.ranges import AtLeast, AtMost, check_value

MOST_FOUND = 100  # detections per image, as in COCO's protocol
_PRIOR = 0.01  # initial probability of a box in a patch (Lin et al. 2017, "Focal Loss", section 4.1)


class PatchBoxes(nn.Module):
    """A linear layer on every patch token: [B, 1 + L, width] to [B, L, 4 + classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 4 + classes)
        with torch.no_grad():
            self.linear.bias[:4] = 0
            self.linear.bias[4:] = math.log(_PRIOR / (1 - _PRIOR))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens[:, 1:])


class Detection(Task):
    """A dense head in which every patch predicts the box whose center it contains (YOLO, Redmon et al. 2016).

    Outputs [B, L, 4 + classes]: the box's center relative to the patch's, in patches, the logarithms of its width and
    height in patches (R-CNN, Girshick et al. 2014, appendix C), and an objectness logit for each class (one binary
    classifier per class: FCOS, Tian et al. 2019). Targets are boxes float32 [B, K, 5], see ``Task``; if several centers
    share a patch, the smallest box counts.

    The loss of an image is the sum over patches of the binary cross-entropy of objectness, and over its boxes
    of the smooth L1 distance (Girshick 2015) of the four numbers.

    Args:
        data: see ``TaskData``.
        overlap: if two detections of a class have a larger intersection over union, the less probable one is dropped.

    Raises:
        SettingError: an overlap outside 0 to 1, or pycocotools is not installed.
    """

    targets = "boxes"
    headline = "average_precision"
    metric_names = METRICS

    def __init__(self, data: TaskData, overlap: float = 0.5) -> None:
        super().__init__(data)
        check_value("task.overlap", overlap, Annotated[float, AtLeast(0), AtMost(1)])
        if importlib.util.find_spec("pycocotools") is None:
            raise SettingError("task", "detection", "pycocotools to be installed: pip install pycocotools")
        self.overlap = overlap
        self.side = data.image_size // data.patch_size

    def new_head(self, width: int) -> nn.Module:
        return PatchBoxes(width, len(self.data.class_names))

    def criterion(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = at_least_float32(outputs)
        numbers, objects = self.encode(targets.to(outputs.dtype))
        responsible = objects.any(2, keepdim=True)
        objectness = F.binary_cross_entropy_with_logits(outputs[..., 4:], objects.to(outputs.dtype), reduction="sum")
        distance = (F.smooth_l1_loss(outputs[..., :4], numbers, reduction="none") * responsible).sum()
        objectness, distance = objectness / len(outputs), distance / len(outputs)
        return objectness + distance, {"objectness_loss": objectness.detach(), "box_loss": distance.detach()}

    def encode(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The target outputs for boxes [B, K, 5]: box numbers [B, L, 4], objects bool [B, L, classes]."""
        grid = boxes[..., :4] / self.data.patch_size
        center, size = (grid[..., :2] + grid[..., 2:]) / 2, grid[..., 2:] - grid[..., :2]
        column, row = center.floor().clamp(0, self.side - 1).unbind(-1)
        patch = torch.arange(self.side**2, device=boxes.device)
        inside = ((row * self.side + column)[..., None] == patch) & (boxes[..., 4:] >= 0)  # [B, K, L]
        area = size.prod(-1, keepdim=True).where(inside, math.inf)
        chosen = area.argmin(1)  # [B, L]
        middle = torch.stack([patch % self.side, patch // self.side], 1) + 0.5
        smallest = 1 / self.data.patch_size  # one pixel, the smallest width of a box
        numbers = [taken(center, chosen) - middle, taken(size, chosen).clamp(min=smallest).log()]
        classes = torch.arange(len(self.data.class_names), device=boxes.device)
        objects = (taken(boxes[..., 4:], chosen) == classes) & inside.any(1)[..., None]
        return torch.cat(numbers, dim=-1), objects

    def decode(self, outputs: Tensor) -> Tensor:
        """The boxes that outputs [B, L, 4 + classes] encode: [B, L, 4] of left, top, right, bottom in pixels."""
        patch = torch.arange(self.side**2, device=outputs.device)
        center = outputs[..., :2] + torch.stack([patch % self.side, patch // self.side], 1) + 0.5
        half = outputs[..., 2:4].exp() / 2
        corners = torch.cat([center - half, center + half], dim=-1) * self.data.patch_size
        return corners.clamp(0, self.data.image_size)

    def detections(self, outputs: Tensor) -> list[Tensor]:
        """The boxes detected in each image: [M, 6] of left, top, right, bottom, class, probability, best first.

        Args:
            outputs: [B, L, 4 + classes].
        """
        outputs = at_least_float32(outputs.detach())
        detections = []
        for boxes, scores in zip(self.decode(outputs), outputs[..., 4:].sigmoid(), strict=True):
            rows = []
            for number, probable in enumerate(scores.unbind(1)):
                chosen = non_maximum_suppression(boxes, probable, self.overlap)
                classes = torch.full_like(probable[chosen], number)
                rows.append(torch.cat([boxes[chosen], classes[:, None], probable[chosen, None]], dim=1))
            together = torch.cat(rows)
            detections.append(together[together[:, 5].argsort(descending=True, stable=True)[:MOST_FOUND]])
        return detections

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """average_precision (COCO's, over overlaps of 0.5 to 0.95) and average_precision_50 (overlap of 0.5).

        Raises:
            DataError: no image of the split has a box.
        """
        return average_precision(self.detections(outputs), targets, self.data.class_names, self.data.image_size)


def taken(values: Tensor, chosen: Tensor) -> Tensor:
    """The rows [B, L, N] of values [B, K, N] at indices chosen [B, L]."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))
