"""The detection head against plain loops, non-maximum suppression against its definition, pycocotools used directly."""

import contextlib
import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from multilevel.levels.tasks import TaskData
from multilevel.levels.tasks.average_precision import average_precision
from multilevel.levels.tasks.boxes import non_maximum_suppression, overlaps
from multilevel.levels.tasks.detection import Detection
from multilevel.solvers import DataError, SettingError

TASK = Detection(TaskData(("a", "b"), (5, 5), image_size=16, patch_size=4))


def random_boxes(count, seed, size=16.0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64).sort(1).values * size
    return corners.flatten(1)


def padded(*images, most=4):
    boxes = torch.full((len(images), most, 5), -1.0, dtype=torch.float64)
    for image, rows in enumerate(images):
        for place, row in enumerate(rows):
            boxes[image, place] = torch.tensor(row, dtype=torch.float64)
    return boxes


def one_overlap(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def test_overlaps_by_hand():
    first, second = random_boxes(7, 0), random_boxes(5, 1)
    expected = [[one_overlap(a, b) for b in second.tolist()] for a in first.tolist()]
    torch.testing.assert_close(overlaps(first, second), torch.tensor(expected, dtype=torch.float64))
    assert overlaps(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 1.0])
def test_suppression_leaves_what_its_definition_says(overlap):
    boxes, scores = random_boxes(30, 2), torch.rand(30, generator=torch.Generator().manual_seed(3))
    scores[4] = scores[9]  # the first of two equals is the better one
    left = sorted(range(30), key=lambda k: (-scores[k].item(), k))
    expected = []
    while left:
        best, *left = left
        expected.append(best)
        left = [k for k in left if one_overlap(boxes[best].tolist(), boxes[k].tolist()) <= overlap]
    assert non_maximum_suppression(boxes, scores, overlap).tolist() == expected
    assert 1 < len(expected) <= 30


def test_loss_by_hand():
    # centers in patches 5 (twice: the smaller box counts) and 15; the second image is empty
    rows = [[2, 3, 12, 11, 0], [5, 5, 8, 9, 1], [13, 12, 16, 16, 0]]
    boxes = padded(rows, [])
    outputs = torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    total = 0.0
    objects = np.zeros((2, 16, 2))
    for row, patch in ((rows[1], 5), (rows[2], 15)):
        objects[0, patch, row[4]] = 1
        x, y = (row[0] + row[2]) / 2, (row[1] + row[3]) / 2
        wanted = [x / 4 - patch % 4 - 0.5, y / 4 - patch // 4 - 0.5]
        wanted += [math.log((row[2] - row[0]) / 4), math.log((row[3] - row[1]) / 4)]
        for got, value in zip(outputs[0, patch, :4].tolist(), wanted, strict=True):
            d = abs(got - value)
            total += d * d / 2 if d < 1 else d - 0.5
    chances = outputs[..., 4:].sigmoid().numpy()
    total -= (objects * np.log(chances) + (1 - objects) * np.log(1 - chances)).sum()
    loss, parts = TASK.criterion(outputs, boxes)
    assert loss.item() == pytest.approx(total / 2, rel=1e-9)
    assert parts["objectness_loss"] + parts["box_loss"] == pytest.approx(loss.item())


def ideal_outputs(boxes):
    numbers, objects = TASK.encode(boxes)
    return torch.cat([numbers, objects.double() * 20 - 10], dim=-1)


def test_boxes_come_back_from_the_outputs_that_encode_them():
    rows = [[1, 1, 6, 4, 0], [9, 2, 15, 13, 1], [2, 10, 5, 15, 0]]
    (found,) = TASK.detections(ideal_outputs(padded(rows)))
    sure = found[found[:, 5] > 0.5]
    assert sorted(sure[:, :5].round(decimals=6).tolist()) == sorted([float(x) for x in row] for row in rows)
    scores = TASK.metrics(ideal_outputs(padded(rows, [])), padded(rows, []))
    assert scores == pytest.approx({"average_precision": 1.0, "average_precision_50": 1.0})


def test_a_box_thinner_than_a_pixel_has_finite_targets():
    numbers, objects = TASK.encode(padded([[3, 3, 3.001, 8, 0]]))
    assert objects.any()
    assert numbers.isfinite().all()
    assert TASK.decode(torch.full((1, 16, 6), 1e4)).isfinite().all()


def test_average_precision_is_that_of_pycocotools_from_files(tmp_path):
    generator = torch.Generator().manual_seed(5)
    images = [random_boxes(3, seed).tolist() for seed in range(6)]
    targets = padded(*([[*box, k % 2] for k, box in enumerate(boxes)] for boxes in images), [])
    found = []
    for boxes in [*images, random_boxes(2, 9).tolist()]:
        near = torch.tensor(boxes).repeat(2, 1)
        near = near + 0.4 * torch.randn(near.shape, generator=generator)
        scores = torch.rand(len(near), 1, generator=generator)
        kinds = torch.arange(len(near))[:, None] % 3 % 2
        found.append(torch.cat([near, kinds, scores], dim=1).double())
    got = average_precision(found, targets, ("a", "b"), 16)

    def annotation(image, row):
        left, top, right, bottom, kind = row[:5]
        box = [left, top, right - left, bottom - top]
        return {"image_id": image + 10, "category_id": int(kind) + 1, "bbox": box, "area": box[2] * box[3]}

    truth = [annotation(k, row) for k, rows in enumerate(targets.tolist()) for row in rows if row[4] >= 0]
    contents = {
        "images": [{"id": k + 10} for k in range(7)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{**one, "id": k + 1, "iscrowd": 0} for k, one in enumerate(truth)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(contents))
    results = [{**annotation(k, row), "score": row[5]} for k, rows in enumerate(found) for row in rows.tolist()]
    (tmp_path / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
    assert got["average_precision"] == pytest.approx(evaluation.stats[0])
    assert got["average_precision_50"] == pytest.approx(evaluation.stats[1])
    assert 0.05 < got["average_precision"] < got["average_precision_50"] < 0.95


def test_nothing_printed_nothing_found_and_nothing_to_find(capsys):
    boxes = padded([[1, 1, 6, 4, 0]])
    assert average_precision([torch.zeros(0, 6)], boxes, ("a",), 16)["average_precision"] == 0
    TASK.metrics(ideal_outputs(boxes), boxes)
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match="no image of the split has a box"):
        TASK.metrics(ideal_outputs(boxes), padded([]))


def test_a_missing_pycocotools_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(SettingError, match=r"task: got 'detection'; expected pycocotools .* pip install pycocotools"):
        Detection(TASK.data)
