"""Whole runs that learn masks and boxes, from the command line; and what is said of sets that lack them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from multilevel.__main__ import main
from multilevel.configuration.composition import build_recipe, compose_config

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data=folder", "data.batch_size=4", "data.image_size=32", "steps=2", "evaluate=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Grey images with a white square in a corner of its own, marked in masks; half of a class has none."""
    root = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    for name, left in (("left", 0), ("right", 24)):
        for place in (root / name, root / "masks" / name):
            place.mkdir(parents=True)
        for number in range(16):
            picture = random.integers(60, 90, (48, 48), dtype=np.uint8)
            if number % 2:
                mask = np.zeros_like(picture)
                mask[number : number + 20, left : left + 20] = 255
                picture |= mask
                Image.fromarray(mask).save(root / "masks" / name / f"{number}.png")
            Image.fromarray(picture).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        (["task=segmentation", "data.mask_classes=labels", "task.loss=balanced_cross_entropy"], "defect_iou"),
        (["task=segmentation", "solver=conjugate_gradient", "solver.curvature=gauss_newton"], "defect_iou"),
        (["task=detection", "solver=neumann", "solver.product=forward"], "box_loss"),
        (["task=detection", "precision=bf16", "mask.policy=random"], "box_loss"),
    ],
)
def test_a_run_learns_masks_or_boxes(squares, tmp_path, settings, metric):
    output = tmp_path / "run"
    assert main(["train", *TINY, f"data.path={squares}", f"output={output}", *settings]) == 0
    summary = json.loads((output / "summary.json").read_text())
    tasked = [name for name in ("finetune", "mask") if name in summary["levels"]]
    for name in tasked:
        assert summary["levels"][name]["last_metrics"][metric] >= 0
    assert len(tasked) == (1 if "mask.policy=random" in settings else 2)


@pytest.mark.parametrize(
    ("task", "head", "names"),
    [("segmentation", 2, ("background", "defect")), ("detection", 5, ("defect",))],
)
def test_the_task_learns_what_the_parts_hold(squares, task, head, names):
    recipe = build_recipe(compose_config([*TINY, f"data.path={squares}", f"task={task}"]))
    assert recipe.task.data.class_names == names
    assert recipe.task.data.counts == recipe.data.target_counts
    assert recipe.modules["finetune"].linear.out_features == head
    images, targets = recipe.graph.batches["finetune"].peek()
    assert len(images) == len(targets) == 4
    # a head that sees the truth is scored perfect
    part = recipe.data.test
    truth = part.targets(torch.arange(len(part)))
    if task == "detection":
        numbers, objects = recipe.task.encode(truth)
        outputs = torch.cat([numbers, objects.float() * 20 - 10], dim=-1)
        assert recipe.task.metrics(outputs, truth)["average_precision"] == pytest.approx(1)
    else:
        outputs = torch.nn.functional.one_hot(truth, 2).permute(0, 3, 1, 2).float()
        assert recipe.task.metrics(outputs, truth)["mean_iou"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["task=none"], "task: got 'none'; expected one of classification, detection, multilabel, segmentation"),
        (["task=segmentation"], "data=digits has no masks for this task: expected masks/CLASS/NAME.png"),
        (["task=detection"], "data=digits has no masks"),
        (["task=multilabel"], "data=digits has no lists of labels"),
        (["task.loss=hinge"], "task.loss: got 'hinge'; expected one of auto, cross_entropy, balanced_cross_entropy"),
        (["task.metric=auc"], "task.metric: got 'auc'; expected one of auto, accuracy, balanced_accuracy, macro_f1"),
        (["task.overlap=0.5"], "task.overlap: got '0.5'; expected a known setting"),
        (["data.mask_classes=colours"], "data.mask_classes: got 'colours'; expected one of binary, labels, values"),
        (["data.min_area=0"], "data.min_area: got 0; expected a whole number of at least 1"),
    ],
)
def test_wrong_input_is_said_in_one_line(settings, text, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *settings]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert text in said[0]
    assert list(tmp_path.iterdir()) == []
