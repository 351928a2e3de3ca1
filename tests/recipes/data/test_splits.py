from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from multilevel.recipes.data import load_data, splits
from multilevel.recipes.data.images import MemoryImages, StreamedImages
from multilevel.solvers.errors import DataError, SettingError

SIZES = {"ant": 40, "bee": 15, "cow": 5}
LABELS = [label for label, size in enumerate(SIZES.values()) for _ in range(size)]
PARTS = ("pretrain", "finetune", "mask", "train", "test")


def counts(part):
    return torch.bincount(part.labels, minlength=3).tolist()


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
@pytest.mark.parametrize("own_test", [True, False])
def test_no_image_is_in_two_parts_and_none_is_lost(parquet, settings, numbers, own_test, memory_gib):
    root = parquet("train", LABELS)
    if own_test:
        parquet("test", [0, 1, 2, 0], first=1000)
    data = load_data(settings(path=str(root), memory_gib=memory_gib))
    finetune, mask, train, test = (set(numbers(getattr(data, name))) for name in PARTS[1:])
    assert len(finetune) == len(data.finetune)
    assert finetune.isdisjoint(mask)
    assert train == finetune | mask
    assert train.isdisjoint(test)
    assert train | test == set(range(60)) | (set(range(1000, 1004)) if own_test else set())
    assert numbers(data.pretrain) == numbers(data.finetune)
    if own_test:
        assert train == set(range(60))


def test_every_class_is_divided_in_proportion(parquet, settings):
    data = load_data(settings(path=str(parquet("train", LABELS)), test_share=0.2, mask_share=0.25))
    assert counts(data.test) == [8, 3, 1]
    assert counts(data.mask) == [8, 3, 1]
    assert counts(data.finetune) == [24, 9, 3]


def test_smallest_class_is_in_every_part(parquet, settings):
    data = load_data(settings(path=str(parquet("train", [0] * 3 + [1] * 30)), mask_share=0.01, test_share=0.9))
    for part in (data.finetune, data.mask, data.test):
        assert counts(part)[0] == 1


def test_division_depends_on_the_seed_alone(parquet, settings, numbers):
    root = str(parquet("train", LABELS))

    def divided(seed):
        data = load_data(settings(path=root, split_seed=seed))
        return {name: numbers(getattr(data, name)) for name in PARTS}

    first = divided(0)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert divided(0) == first
    other = divided(1)
    assert other["test"] != first["test"]
    assert other["mask"] != first["mask"]


def test_global_random_states_do_not_move(parquet, settings):
    root = str(parquet("train", LABELS))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    load_data(settings(path=root, limit=30))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_the_test_part_stays_when_other_shares_change(parquet, settings, numbers):
    root = str(parquet("train", LABELS))
    first = numbers(load_data(settings(path=root)).test)
    assert numbers(load_data(settings(path=root, mask_share=0.5, limit=20)).test) == first


def test_limit_counts_training_images(parquet, settings):
    data = load_data(settings(path=str(parquet("train", LABELS)), limit=24))
    assert len(data.train) == 24
    assert counts(data.train) == [16, 6, 2]
    assert len(data.test) == 12


def test_limit_that_leaves_one_class(parquet, settings):
    with pytest.raises(DataError, match=r"data\.limit=1: .*one class only"):
        load_data(settings(path=str(parquet("train", LABELS)), limit=1))


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_mean_and_deviation_are_those_of_the_pretraining_images(parquet, settings, memory_gib):
    data = load_data(settings(path=str(parquet("train", LABELS)), memory_gib=memory_gib))
    pixels = data.pretrain.pixels(torch.arange(len(data.pretrain))).numpy().astype(np.float64) / 255
    np.testing.assert_allclose(data.mean.numpy(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(data.std.numpy()[0], pixels.std((0, 2, 3))[0], rtol=1e-6)
    assert data.std.tolist()[1:] == [1.0, 1.0]  # green and blue never vary in this set
    assert data.mean.dtype == data.std.dtype == torch.float32
    everything = data.train.pixels(torch.arange(len(data.train))).double().mean((0, 2, 3)) / 255
    assert abs(everything[0] - data.mean[0]) > 1e-6  # so that the mask part would have been noticed


def test_statistics_of_a_big_part_are_drawn_from_it(settings, monkeypatch):
    digits = settings(name="digits", channels=1)
    exact = load_data(digits)
    asked = []
    ask = splits.Split.pixels
    monkeypatch.setattr(splits, "_STATISTICS_IMAGES", 600)
    monkeypatch.setattr(splits.Split, "pixels", lambda part, some: asked.append(part.name) or ask(part, some))
    drawn = load_data(digits)
    assert asked == ["pretrain", "pretrain"]  # 600 images in batches of 500
    assert 0 < abs(drawn.mean - exact.mean) < 0.01
    assert 0 < abs(drawn.std - exact.std) < 0.01


def test_statistics_of_sorted_images_are_not_those_of_the_first(settings, parquet, monkeypatch):
    root = parquet("train", [0] * 100 + [1] * 100)  # the red of image n is n
    monkeypatch.setattr(splits, "_STATISTICS_IMAGES", 60)
    data = load_data(settings(path=str(root), near_copies="keep"))
    red = data.pretrain.pixels(torch.arange(len(data.pretrain)))[:, 0].double().mean() / 255
    assert data.mean[0] == pytest.approx(red.item(), abs=0.09)  # three standard errors; the first 60 are off by 0.25


def test_normalize_gives_mean_zero_and_deviation_one(settings):
    data = load_data(settings(name="digits", channels=1))
    images = data.normalize(data.pretrain.pixels(torch.arange(len(data.pretrain))))
    assert images.dtype == torch.float32
    assert abs(images.mean()) < 1e-4
    assert abs(images.std() - 1) < 1e-4


def test_digits_are_those_of_scikit_learn(settings):
    from sklearn.datasets import load_digits

    data = load_data(settings(name="digits", channels=1, mask_share=0.5))
    assert len(data.train) + len(data.test) == 1797
    assert data.class_names == tuple("0123456789")
    truth = load_digits()
    known = {
        tuple(np.round(image * 255 / 16).astype(int).ravel()): label
        for image, label in zip(truth.images, truth.target, strict=True)
    }
    for part in (data.mask, data.test):
        for image, label in zip(part.pixels(torch.arange(20)), part.labels[:20], strict=True):
            assert known[tuple(image.flatten().tolist())] == label


def test_test_images_are_not_decoded_before_they_are_asked_for(folder, settings):
    files = [f"train/{name}/{number}.png" for name in ("ant", "bee") for number in range(6)]
    root = folder([*files, "test/ant/1.png"])
    (root / "test" / "ant" / "2.png").write_bytes(b"broken")
    data = load_data(settings(path=str(root)))
    assert data.test.labels.tolist() == [0, 0]
    with pytest.raises(DataError, match=r"test/ant/2\.png"):
        data.test.pixels(torch.tensor([1]))


def test_cut_test_images_are_not_decoded_either(parquet, settings):
    data = load_data(settings(path=str(parquet("train", LABELS))))
    images = data.test.images
    assert isinstance(images, MemoryImages)
    assert not images.decoded[data.test.indices].any()
    assert images.decoded[data.train.indices].all()
    data.test.pixels(torch.tensor([3]))
    assert images.decoded[data.test.indices].nonzero().flatten().tolist() == [3]


def test_sets_above_the_memory_are_decoded_on_demand(parquet, settings):
    root = str(parquet("train", LABELS))
    size = 60 * 3 * 8 * 8 / 2**30
    assert isinstance(load_data(settings(path=root, memory_gib=size)).train.images, MemoryImages)
    assert isinstance(load_data(settings(path=root, memory_gib=size * 0.99)).train.images, StreamedImages)


def test_no_mask_part_only_where_allowed(parquet, settings):
    without = settings(path=str(parquet("train", LABELS)), mask_share=0.0)
    with pytest.raises(SettingError, match=r"data\.mask_share: got 0\.0"):
        load_data(without)
    data = load_data(without, allow_no_mask=True)
    assert len(data.mask) == 0
    assert data.finetune.indices.tolist() == data.train.indices.tolist()


def test_no_test_part_where_its_share_is_nothing(parquet, settings):
    data = load_data(settings(path=str(parquet("train", LABELS)), test_share=0.0))
    assert len(data.test) == 0
    assert len(data.train) == 60


@pytest.mark.parametrize(("size", "mask_share", "needed"), [(2, 0.2, 3), (1, 0.2, 3), (1, 0.0, 2)])
def test_class_too_small_for_the_division_is_named(parquet, settings, size, mask_share, needed):
    root = str(parquet("train", [0] * 10 + [2] * size))
    with pytest.raises(DataError, match=f"class 'cow' has {size} .*needs at least {needed}"):
        load_data(settings(path=root, mask_share=mask_share), allow_no_mask=True)


def test_settings_changed_after_construction_are_checked(settings):
    changed = settings(name="digits", channels=1)
    changed.crop_scale = 2.0
    with pytest.raises(SettingError, match=r"data\.crop_scale"):
        load_data(changed)


@pytest.mark.parametrize("own_test", [True, False])
def test_validation_images_are_in_no_other_part_and_not_decoded(parquet, settings, numbers, own_test):
    root = parquet("train", LABELS)
    if own_test:
        parquet("test", [0, 1, 2, 0], first=1000)
    data = load_data(settings(path=str(root), validation_share=0.25))
    assert not data.validation.images.decoded[data.validation.indices].any()
    parts = [set(numbers(getattr(data, name))) for name in ("finetune", "mask", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60 + (4 if own_test else 0)
    assert set(numbers(data.train)) == parts[0] | parts[1]
    assert set(numbers(data.pretrain)) == parts[0]
    assert counts(data.validation) == ([10, 4, 1] if own_test else [8, 3, 1])


def test_validation_leaves_the_test_part_and_the_limit_leaves_validation(parquet, settings, numbers):
    root = str(parquet("train", LABELS))
    without = load_data(settings(path=root))
    held = load_data(settings(path=root, validation_share=0.2))
    limited = load_data(settings(path=root, validation_share=0.2, limit=20))
    assert numbers(without.test) == numbers(held.test) == numbers(limited.test)
    assert numbers(held.validation) == numbers(limited.validation)
    assert len(limited.train) == 20
    assert len(without.validation) == 0


def test_division_without_validation_is_what_it_was_before_there_was_any(settings):
    data = load_data(settings(name="digits", channels=1, near_copies="keep"))
    sums = [int(getattr(data, name).indices.sum()) for name in PARTS]
    assert sums == [1028757, 1028757, 250810, 1279567, 334139]


def test_class_too_small_for_validation_is_named(parquet, settings):
    root = str(parquet("train", [0] * 10 + [2] * 3))
    parquet("test", [0, 2], first=100)
    load_data(settings(path=root, validation_share=0.1))
    root = str(parquet("train", [0] * 10 + [2] * 2))
    with pytest.raises(DataError, match=r"class 'cow' has 2 .*finetune, mask, validation: it needs at least 3"):
        load_data(settings(path=root, validation_share=0.1))
