"""Evaluation of frozen encoders: what is read, what is fitted, what is reported."""

from dataclasses import replace

import pytest
import torch

from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.evaluation import EvaluationSettings, evaluate_features, format_table, raw_pixels
from multilevel.recipes.evaluation.evaluate import stratified_positions
from multilevel.solvers import DataError, SettingError

CPU = torch.device("cpu")
SETTINGS = EvaluationSettings(max_images=300)


@pytest.fixture(scope="module")
def digits():
    return load_data(DataSettings(name="digits", image_size=8, channels=1, patch_size=2, batch_size=64))


def constant(images):
    return torch.ones(len(images), 3)


def test_raw_digits_score_high_and_a_constant_encoder_by_chance(digits):
    scores = evaluate_features({"raw pixels": raw_pixels, "constant": constant}, digits, SETTINGS, CPU)
    assert min(scores["raw pixels"].values()) > 0.9
    assert max(scores["constant"].values()) < 0.2
    labels = digits.test.labels
    assert scores["majority class"]["knn"] <= torch.bincount(labels).max().item() / len(labels)


def test_encoders_get_normalized_images_of_train_and_test_without_gradients(digits):
    seen = []

    def encoder(images):
        assert not torch.is_grad_enabled()
        seen.append(images)
        return images.flatten(1)

    evaluate_features({"one": encoder}, digits, EvaluationSettings(max_images=None, batch_size=100), CPU)
    assert max(len(images) for images in seen) == 100
    assert sum(len(images) for images in seen) == len(digits.train) + len(digits.test)
    train = torch.cat(seen)[: len(digits.train)]
    assert train.mean().abs() < 0.05
    assert train.std() == pytest.approx(1, abs=0.05)


def test_wrong_test_labels_change_the_score_alone(digits):
    labels = digits.test.images.labels.clone()
    labels[digits.test.indices] = (labels[digits.test.indices] + 1) % 10  # the test images are not among train's

    class Relabelled:
        pixels = staticmethod(digits.test.images.pixels)

    Relabelled.labels = labels
    seen = []

    def encoder(images):
        seen.append(images)
        return images.flatten(1)

    relabelled = replace(digits, test=replace(digits.test, images=Relabelled))
    right, wrong = (evaluate_features({"raw": encoder}, data, SETTINGS, CPU)["raw"] for data in (digits, relabelled))
    half = len(seen) // 2
    assert torch.equal(torch.cat(seen[:half]), torch.cat(seen[half:]))
    for protocol, accuracy in right.items():  # the same predictions, which are now right only where they were wrong
        assert accuracy > 0.9
        assert wrong[protocol] <= 1 - accuracy


def test_the_order_of_test_images_does_not_matter(digits):
    order = torch.randperm(len(digits.test), generator=torch.Generator().manual_seed(0))
    shuffled = replace(digits, test=replace(digits.test, indices=digits.test.indices[order]))
    scores = [evaluate_features({"raw": raw_pixels}, data, SETTINGS, CPU)["raw"] for data in (digits, shuffled)]
    assert scores[0] == scores[1]


def test_the_cap_is_in_proportion_and_keeps_every_class():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 5)
    chosen = stratified_positions(labels, 90, seed=0)
    counts = torch.bincount(labels[chosen])
    assert counts.sum() == 90
    assert counts.tolist() == pytest.approx([60, 30, 1], abs=2)
    assert torch.equal(chosen, stratified_positions(labels, 90, seed=0))
    assert not torch.equal(chosen, stratified_positions(labels, 90, seed=1))
    assert torch.equal(stratified_positions(labels, None, 0), torch.arange(905))
    assert set(labels[stratified_positions(labels, 6, seed=0)].tolist()) == {0, 1, 2}


def test_errors_are_named(digits):
    with pytest.raises(DataError, match="no labels"):
        evaluate_features({"raw": raw_pixels}, replace(digits, labelled=False), SETTINGS, CPU)
    with pytest.raises(SettingError, match=r"evaluation\.max_images: got 1; expected enough images for two"):
        evaluate_features({"raw": raw_pixels}, digits, EvaluationSettings(max_images=1), CPU)
    with pytest.raises(DataError, match="the features of the broken one are not finite"):
        evaluate_features({"broken one": lambda images: images.flatten(1) / 0}, digits, SETTINGS, CPU)
    empty = replace(digits, test=replace(digits.test, indices=digits.test.indices[:0]))
    with pytest.raises(DataError, match=r"no test images: raise data\.test_share"):
        evaluate_features({"raw": raw_pixels}, empty, SETTINGS, CPU)


@pytest.mark.parametrize(
    ("name", "value"), [("max_images", 0), ("neighbours", 0), ("batch_size", -1), ("seed", -1), ("neighbours", 2.5)]
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(SettingError, match=rf"evaluation\.{name}: got {value}"):
        EvaluationSettings(**{name: value})


def test_the_table_has_a_row_for_each_encoder():
    table = format_table(
        {"trained": {"linear_probe": 0.5, "knn": 0.25}, "raw pixels": {"linear_probe": 1.0, "knn": 0.0}}
    )
    lines = table.splitlines()
    assert lines[1].split() == ["trained", "50.0%", "25.0%"]
    assert lines[2].split() == ["raw", "pixels", "100.0%", "0.0%"]
    assert len({len(line) for line in lines}) == 1


def test_raw_pixels_are_averaged_down_to_32():
    images = torch.arange(4.0).view(1, 1, 2, 2)
    assert torch.equal(raw_pixels(images), torch.arange(4.0)[None])
    large = images.repeat_interleave(32, 2).repeat_interleave(32, 3)
    assert torch.equal(raw_pixels(large), images.repeat_interleave(16, 2).repeat_interleave(16, 3).flatten(1))
