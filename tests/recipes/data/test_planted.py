"""Planted signals: the class is in the known patches, and nothing but the labels tells them from clutter."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.data.planted import CLASSES, signal_patches

SETTINGS = DataSettings(name="planted", image_size=16, channels=1, patch_size=4, batch_size=64, limit=2000)


@pytest.fixture(scope="module")
def planted():
    return load_data(SETTINGS)


def patches(part):
    """[N, 16 patches, 16 pixels]"""
    pixels = part.pixels(torch.arange(len(part))).double().view(-1, 4, 4, 4, 4)
    return pixels.transpose(2, 3).flatten(3).flatten(1, 2)


def test_one_patch_of_each_block_shows_the_class(planted):
    assert planted.signal_patches.view(4, 4).tolist() == [[True, False] * 2, [False] * 4] * 2
    assert torch.equal(signal_patches(8).view(4, 2, 4, 2).sum((1, 3)), torch.ones(4, 4))


def test_the_class_is_read_off_signal_patches_and_off_no_other(planted):
    train, test = patches(planted.train), patches(planted.test)
    for patch, signal in enumerate(planted.signal_patches.tolist()):
        probe = LogisticRegression(max_iter=300).fit(train[:, patch] / 60, planted.train.labels)
        accuracy = probe.score(test[:, patch] / 60, planted.test.labels)
        assert accuracy > 0.95 if signal else accuracy < 1 / CLASSES + 0.07


def test_clutter_varies_as_much_as_the_signal(planted):
    within = patches(planted.train).var(-1).mean(0)
    assert within.max() / within.min() < 1.1
    assert abs(within[planted.signal_patches].mean() / within[~planted.signal_patches].mean() - 1) < 0.05
    between = patches(planted.train).var(0).mean(1)  # of each pixel, over images
    assert between[planted.signal_patches].mean() / between[~planted.signal_patches].mean() == pytest.approx(
        1, abs=0.25
    )


def test_images_are_the_same_every_time_and_parts_share_none(planted):
    again = load_data(SETTINGS)
    first = torch.arange(50)
    assert torch.equal(planted.train.pixels(first), again.train.pixels(first))
    assert torch.equal(planted.test.pixels(first), again.test.pixels(first))
    both = torch.cat([planted.train.pixels(torch.arange(len(planted.train))), planted.test.pixels(torch.arange(1000))])
    assert len(both.flatten(1).unique(dim=0)) == len(both)


@pytest.mark.parametrize("policy", ["topk", "variance", "adversarial"])
def test_the_auc_is_that_of_the_mean_scores(policy):
    settings = ["data=planted", "data.limit=600", f"mask.policy={policy}", "model.patch_size=4"]
    recipe = build_recipe(compose_config(settings))
    signal = recipe.data.signal_patches
    assert set(recipe.findings()) == {"mask_predictability", "signal_auc", "signal_gap"}
    if policy == "variance":
        assert 0.0 <= recipe.findings()["signal_auc"] <= 1.0
        return
    part = recipe.data.mask if policy == "topk" else recipe.data.pretrain  # only topk learns from labels
    images = recipe.data.normalize(part.pixels(torch.arange(len(part))))
    with torch.no_grad():
        mean = recipe.modules["mask"](images).sigmoid().mean(0)
    assert recipe.findings()["signal_auc"] == pytest.approx(roc_auc_score(signal, mean))
    assert recipe.findings()["signal_gap"] == pytest.approx(float(mean[signal].mean() - mean[~signal].mean()), abs=1e-6)


def test_data_that_does_not_know_its_signal_has_no_auc():
    assert set(build_recipe(compose_config([])).findings()) == {"mask_predictability"}
    assert build_recipe(compose_config(["data=planted", "data.limit=600", "model.patch_size=2"])).findings().keys() == {
        "mask_predictability"
    }
