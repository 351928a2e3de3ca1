"""Losses, metrics and heads of the tasks, against scikit-learn, numpy and plain loops."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch.nn import functional as F

from multilevel.levels.tasks import TASKS, TaskData
from multilevel.levels.tasks.losses import class_weights
from multilevel.solvers import DataError, SettingError

generator = torch.Generator().manual_seed(0)


def data(counts=(60, 30, 10), size=8, patch=2):
    return TaskData(tuple("abcdefg"[: len(counts)]), tuple(counts), image_size=size, patch_size=patch)


def randn(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def randint(high, *shape):
    return torch.randint(high, shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("classification", (5, 3)), ("multilabel", (5, 3)), ("segmentation", (5, 3, 4, 4)), ("detection", (5, 16, 7))],
)
def test_heads_map_tokens_to_outputs_that_the_task_scores(name, shape):
    task = TASKS[name](data())
    assert task.new_head(6)(torch.randn(5, 17, 6)).shape == shape


def test_class_weights_are_inverse_to_the_counts_with_mean_1():
    weights = class_weights((60, 0, 30, 10))
    assert weights[1] == 0
    assert weights[[0, 2, 3]].mean().item() == pytest.approx(1)
    torch.testing.assert_close(weights * torch.tensor([60, 0, 30, 10]), weights[0] * 60 * torch.tensor([1, 0, 1, 1]))


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced_cross_entropy"])
def test_classification_loss_is_scikit_learns(loss):
    logits, labels = randn(50, 3), randint(3, 50)
    weights = None if loss == "cross_entropy" else (1 / np.array([60, 30, 10]))[labels.numpy()]
    expected = metrics.log_loss(labels.numpy(), logits.softmax(1).numpy(), sample_weight=weights, labels=[0, 1, 2])
    found, batch = TASKS["classification"](data(), loss=loss).criterion(logits, labels)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert batch["accuracy"].item() == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_classification_metrics_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
    found = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    got = TASKS["classification"](data()).metrics(F.one_hot(found).double(), labels)
    assert got["accuracy"] == pytest.approx(7 / 9)
    assert got["balanced_accuracy"] == pytest.approx((4 / 5 + 1 / 2 + 1) / 3)
    assert got["macro_f1"] == pytest.approx((8 / 9 + 1 / 2 + 4 / 5) / 3)


def test_the_area_under_the_roc_curve_is_that_of_probabilities():
    """Logits of an image may all be high; what orders images is the share of a class in its image."""
    logits = torch.tensor([[9.0, 8.0, 0.0], [1.0, 0.0, 0.0], [7.0, 8.0, 0.0], [0.0, 1.0, 0.0]])
    assert TASKS["classification"](data()).metrics(logits, torch.tensor([0, 0, 1, 1]))["macro_roc_auc"] == 1


@pytest.mark.parametrize(
    ("counts", "loss", "metric"),
    [
        ((60, 20, 20), "cross_entropy", "accuracy"),
        ((61, 20, 20), "balanced_cross_entropy", "balanced_accuracy"),
        ((60, 20, 0), "cross_entropy", "accuracy"),  # of a class without images nothing follows
        ((60, 20), "cross_entropy", "macro_roc_auc"),
        ((61, 20), "balanced_cross_entropy", "macro_roc_auc"),
    ],
)
def test_auto_balances_unbalanced_classes_and_says_so(counts, loss, metric):
    def task(**options):
        return TASKS["classification"](data(counts), **options)

    auto = task(loss="auto", metric="auto")
    assert (auto.loss, auto.headline) == (loss, metric)
    assert (auto.weights is not None) == (loss == "balanced_cross_entropy")
    plain = (loss, metric) == ("cross_entropy", "accuracy")
    assert len(auto.notes) == (not plain)
    assert plain or f"task.metric={metric}" in auto.notes[0]
    assert (f"task.loss={loss}" in "".join(auto.notes)) == (loss == "balanced_cross_entropy")
    assert task(loss="cross_entropy", metric="auto").weights is None
    assert task(loss="cross_entropy", metric="auto").headline == metric
    chosen = task(loss="cross_entropy", metric="macro_f1")
    assert (chosen.loss, chosen.headline, chosen.notes) == ("cross_entropy", "macro_f1", ())
    # what runs from before auto stored
    for before, headline in (("cross_entropy", "accuracy"), ("balanced_cross_entropy", "balanced_accuracy")):
        old = task(loss=before, metric=None)
        assert (old.loss, old.headline, old.notes) == (before, headline, ())


def test_the_note_names_the_classes():
    kinds = TASKS["classification"](data((610, 0, 21, 74)), loss="auto", metric="auto")
    assert kinds.notes == (
        "from 21 (c) to 610 (a) labelled images of a class: task.loss=balanced_cross_entropy and "
        "task.metric=balanced_accuracy, unless set otherwise",
    )
    balanced = TASKS["classification"](data((30, 30, 30)), loss="balanced_cross_entropy", metric="auto")
    assert balanced.notes == ("task.loss=balanced_cross_entropy: task.metric=balanced_accuracy, unless set otherwise",)


def test_the_headline_goes_with_the_loss_or_is_chosen():
    task = TASKS["classification"]
    assert task(data()).headline == "accuracy"
    assert task(data(), loss="balanced_cross_entropy").headline == "balanced_accuracy"
    assert task(data(), metric="macro_f1").headline == "macro_f1"
    for name in TASKS:
        assert TASKS[name](data()).headline


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classification", {"loss": "hinge"}, r"task\.loss: got 'hinge'; expected one of auto, cross_entropy, bal"),
        ("classification", {"metric": "auc"}, r"task\.metric: got 'auc'; expected one of auto, accuracy"),
        ("segmentation", {"loss": None}, r"task\.loss: got None"),
        ("detection", {"overlap": 2}, r"task\.overlap: got 2; expected a share"),
        ("detection", {"overlap": "half"}, r"task\.overlap: got 'half'"),
    ],
)
def test_an_option_that_cannot_work_is_named(name, options, message):
    with pytest.raises(SettingError, match=message):
        TASKS[name](data(), **options)


def test_multilabel_loss_and_metrics_are_scikit_learns():
    task = TASKS["multilabel"](data())
    logits, targets = randn(40, 3), randint(2, 40, 3).float()
    targets[:, 1] = 0  # a class that no image has
    chances = logits.sigmoid().numpy()
    rows = [metrics.log_loss(targets[:, k].numpy(), chances[:, k], labels=[0, 1]) for k in range(3)]
    assert task.criterion(logits, targets)[0].item() == pytest.approx(np.mean(rows), rel=1e-6)
    got = task.metrics(logits, targets)
    truth = targets.numpy().astype(int)
    precision = [metrics.average_precision_score(truth[:, k], chances[:, k]) for k in (0, 2)]
    f1 = [metrics.f1_score(truth[:, k], chances[:, k] > 0.5) for k in (0, 2)]
    assert got["mean_average_precision"] == pytest.approx(np.mean(precision))
    assert got["macro_f1"] == pytest.approx(np.mean(f1))
    with pytest.raises(DataError, match="no image of the split has any class"):
        task.metrics(logits, torch.zeros(40, 3))


def masks_and_logits(classes=3, images=70):
    masks = randint(classes, images, 8, 8)
    masks[randint(10, images, 8, 8) == 0] = 255
    return masks, randn(images, classes, 4, 4)


def upsampled(outputs):
    """Bilinear interpolation written out: from the centers of 2 x 2 patches to pixels."""
    at = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    low, share = np.floor(at).astype(int), at - np.floor(at)
    matrix = np.zeros((8, 4))
    for pixel in range(8):
        matrix[pixel, low[pixel]] += 1 - share[pixel]
        matrix[pixel, min(low[pixel] + 1, 3)] += share[pixel]
    return np.einsum("yr,xc,bkrc->bkyx", matrix, matrix, outputs.numpy())


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced_cross_entropy"])
def test_segmentation_loss_is_that_of_every_pixel(loss):
    masks, outputs = masks_and_logits()
    logits, truth = upsampled(outputs).transpose(0, 2, 3, 1).reshape(-1, 3), masks.numpy().ravel()
    counted = truth != 255
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    weights = None if loss == "cross_entropy" else (1 / np.array([60, 30, 10]))[truth[counted]]
    expected = metrics.log_loss(truth[counted], chances[counted], sample_weight=weights)
    task = TASKS["segmentation"](data(), loss=loss)
    assert task.criterion(outputs, masks)[0].item() == pytest.approx(expected, rel=1e-9)
    assert task.criterion(outputs, torch.full_like(masks, 255))[0].item() == 0


def test_segmentation_metrics_are_those_of_a_dense_confusion_matrix():
    masks, outputs = masks_and_logits()
    truth, found = masks.numpy().ravel(), upsampled(outputs).argmax(1).ravel()
    truth, found = truth[truth != 255], found[truth != 255]
    iou = [((truth == k) & (found == k)).sum() / ((truth == k) | (found == k)).sum() for k in range(3)]
    got = TASKS["segmentation"](data()).metrics(outputs, masks)
    assert got["mean_iou"] == pytest.approx(np.mean(iou))
    assert got["mean_iou"] == pytest.approx(metrics.jaccard_score(truth, found, average="macro"))
    either = (truth > 0) | (found > 0)
    assert got["defect_iou"] == pytest.approx(((truth > 0) & (found > 0)).sum() / either.sum())
    assert got["pixel_accuracy"] == pytest.approx((truth == found).mean())
    # a class that neither the training images nor the split have is no class of the mean, even where it is predicted
    without = TASKS["segmentation"](data((60, 30, 10, 0)))
    more = torch.cat([outputs, torch.full((70, 1, 4, 4), -9.0)], dim=1)
    more[0, 3] = 9
    found = upsampled(more).argmax(1).ravel()[masks.numpy().ravel() != 255]
    iou = [((truth == k) & (found == k)).sum() / ((truth == k) | (found == k)).sum() for k in range(3)]
    assert without.metrics(more, masks)["mean_iou"] == pytest.approx(np.mean(iou))
    rare = torch.cat([outputs, torch.full((70, 1, 4, 4), -9.0)], dim=1)  # nor is one that is neither there nor found
    assert TASKS["segmentation"](data((60, 30, 10, 1))).metrics(rare, masks)["mean_iou"] == pytest.approx(
        got["mean_iou"]
    )
    batch = TASKS["segmentation"](data()).criterion(outputs, masks)[1]
    assert batch["defect_iou"].item() == pytest.approx(got["defect_iou"], rel=1e-5)


def test_masks_that_cannot_be_scored_are_named():
    task = TASKS["segmentation"](data())
    outputs = randn(2, 3, 4, 4)
    with pytest.raises(DataError, match="class number 7; the training images have numbers up to 2"):
        task.metrics(outputs, torch.full((2, 8, 8), 7))
    with pytest.raises(DataError, match=r"every pixel .* is ignored"):
        task.metrics(outputs, torch.full((2, 8, 8), 255))


def test_a_batch_without_defects_found_or_marked_is_all_right():
    outputs = torch.zeros(2, 3, 4, 4)
    outputs[:, 0] = 1
    assert TASKS["segmentation"](data()).criterion(outputs, torch.zeros(2, 8, 8).long())[1]["defect_iou"] == 1


@pytest.mark.parametrize("name", ["classification", "multilabel", "segmentation", "detection"])
def test_losses_are_convex_in_the_outputs(name):
    task = TASKS[name](data())
    boxes = torch.full((2, 3, 5), -1.0)
    boxes[:, 0] = torch.tensor([1.0, 2, 5, 4, 1])
    outputs, targets = {
        "classification": (randn(2, 3), randint(3, 2)),
        "multilabel": (randn(2, 3), randint(2, 2, 3).float()),
        "segmentation": (randn(2, 3, 4, 4), masks_and_logits(images=2)[0]),
        "detection": (randn(2, 16, 7), boxes),
    }[name]
    hessian = torch.autograd.functional.hessian(lambda one: task.criterion(one, targets)[0], outputs)
    size = outputs.numel()
    assert torch.linalg.eigvalsh(hessian.reshape(size, size)).min() > -1e-10
