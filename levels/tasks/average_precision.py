"""COCO's average precision, by pycocotools (the optional extra ``detection``)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from multilevel.solvers import DataError

METRICS = ("average_precision", "average_precision_50")


def average_precision(
    detections: Sequence[Tensor], targets: Tensor, class_names: Sequence[str], image_size: int
) -> dict[str, float]:
    """Average precision over the classes that have boxes.

    Args:
        detections: for each image, [M, 6] of left, top, right, bottom in pixels, class, score.
        targets: boxes [N, K, 5] of left, top, right, bottom, class, rows of -1 after the last.
        class_names: names of the classes, by number.
        image_size: pixels per side.

    Returns:
        ``average_precision`` (mean over overlaps 0.5, 0.55, ... 0.95) and ``average_precision_50`` (overlap 0.5).

    Raises:
        DataError: no image has a box.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = [_annotation(image, row) for image, boxes in enumerate(targets) for row in boxes if row[4] >= 0]
    if not truth:
        raise DataError("no image of the split has a box: average precision is not defined")
    answers = [
        {**_annotation(image, row), "score": float(row[5])} for image, rows in enumerate(detections) for row in rows
    ]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image, "width": image_size, "height": image_size} for image in range(len(targets))],
        "annotations": [{"id": number, **box} for number, box in enumerate(truth, 1)],  # 0 would count as unmatched
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names)],
    }
    if not answers:
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(answers), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluation.stats[:2], strict=True)}


def _annotation(image: int, row: Tensor) -> dict[str, Any]:
    left, top, right, bottom, number = row[:5].tolist()
    box = [left, top, right - left, bottom - top]
    return {"image_id": image, "category_id": int(number), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
