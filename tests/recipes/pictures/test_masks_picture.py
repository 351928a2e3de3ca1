"""masks.png: the true probabilities, a number for the distance from random masks, and the names of the images."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from claims import untrained
from PIL import Image

from multilevel.levels.masks import POLICIES, MaskPolicy, MaskView
from multilevel.levels.masks.statistics import DRAWS, hiding_probabilities, mask_predictability
from multilevel.recipes.pictures.masks import draw_masks
from multilevel.recipes.pictures.trained_masks import TrainedMasks, image_label

LOGITS = torch.tensor([[2.0, -1.0, 0.5, -3.0], [0.0, 0.0, 0.0, 0.0]])
HIDDEN = 2


def view(logits, hidden, count=None):
    count, patches = count or len(logits), logits.shape[1]
    side = int(patches**0.5)
    attention = torch.rand(count, patches, generator=torch.Generator().manual_seed(1))
    images = torch.rand(count, 1, 4 * side, 4 * side, generator=torch.Generator().manual_seed(2))
    return MaskView(images, patches, hidden, lambda: logits, lambda: attention)


def enumerated(weights, hidden):
    """Each patch's probability of being among ``hidden`` draws without replacement, over all orders."""
    inclusion = np.zeros(len(weights))
    for order in permutations(range(len(weights)), hidden):
        left, probability = weights.sum(), 1.0
        for patch in order:
            probability *= weights[patch] / left
            left -= weights[patch]
        inclusion[list(order)] += probability
    return inclusion


@pytest.mark.parametrize("policy", ["sampled", "adversarial"])
def test_the_probabilities_are_those_of_all_orders(policy):
    torch.manual_seed(0)
    estimated = hiding_probabilities(POLICIES[policy](), view(LOGITS, HIDDEN)).double().numpy()
    exact = np.stack([enumerated(weights, HIDDEN) for weights in LOGITS.double().sigmoid().numpy()])
    np.testing.assert_allclose(exact.sum(1), HIDDEN)
    standard_error = np.sqrt(exact * (1 - exact) / DRAWS)
    assert (np.abs(estimated - exact) < 4 * standard_error).all()
    np.testing.assert_allclose(estimated.mean(1), HIDDEN / 4, atol=1e-6)
    assert np.abs(LOGITS.sigmoid().numpy() - exact).max() > 0.1  # the network's outputs are no such probabilities


def exact_predictability(probabilities):
    ratio = probabilities.mean()
    return ((probabilities - ratio) ** 2).mean() / (ratio * (1 - ratio))


def test_the_number_has_the_expectation_that_the_true_probabilities_give():
    exact = enumerated(LOGITS[0].double().sigmoid().numpy(), HIDDEN)
    torch.manual_seed(0)
    values = [
        mask_predictability(hiding_probabilities(POLICIES["sampled"](), view(LOGITS[:1], HIDDEN), draws=10), draws=10)
        for _ in range(1000)
    ]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - exact_predictability(exact)) < 4 * standard_error


@pytest.mark.parametrize("policy", ["random", "weighted", "stratified"])
def test_the_number_is_0_where_every_patch_is_hidden_equally_often(policy):
    torch.manual_seed(0)
    logits = torch.randn(16, 16)
    # each estimated (p - r)^2 has a standard deviation of about sqrt(2) r (1 - r) / DRAWS
    tolerance = 4 * np.sqrt(2) / DRAWS / np.sqrt(logits.numel())
    assert abs(mask_predictability(hiding_probabilities(POLICIES[policy](), view(logits, 12)))) < tolerance


@pytest.mark.parametrize("policy", ["topk", "attention"])
def test_the_number_is_1_for_a_fixed_mask(policy):
    probabilities = hiding_probabilities(POLICIES[policy](), view(torch.randn(3, 16), 12), draws=5)
    assert sorted(probabilities.unique().tolist()) == [0.0, 1.0]
    assert mask_predictability(probabilities, draws=5) == pytest.approx(1.0, abs=1e-6)


class Biased(MaskPolicy):
    """Hides the first patch with probability 1/2, else the second, of four."""

    def scores(self, view):
        scores = torch.zeros(len(view.images), view.patches)
        chosen = (torch.rand(len(view.images), 1) < 0.5).long()
        return scores.scatter(1, chosen, 1.0)


def test_a_policy_of_ones_own_is_estimated_too():
    torch.manual_seed(0)
    probabilities = hiding_probabilities(Biased(), view(torch.zeros(8, 4), 1))
    # (1/2, 1/2, 0, 0) around 1/4: mean square 1/16, over 3/16
    assert mask_predictability(probabilities) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_have_a_panel_of_their_own_and_hidden_patches_are_grey(channels, tmp_path, figures):
    images, hidden = torch.zeros(2, channels, 8, 8), torch.zeros(2, 4)
    hidden[:, 0] = 1
    probabilities = torch.tensor([[0.9, 0.05, 0.05, 0.0], [0.1, 0.3, 0.3, 0.3]])
    draw_masks(tmp_path / "m.png", images, probabilities, hidden, torch.ones_like(images), 4, ["a", "b"], "title")
    (figure,) = figures
    *panels, bar = figure.axes
    assert len(panels) == 8
    for row, grid in enumerate(probabilities):
        *pictures, heat = panels[4 * row : 4 * row + 4]
        (shown,) = heat.images  # over nothing
        np.testing.assert_allclose(shown.get_array(), grid.view(2, 2), atol=1e-6)
        assert shown.get_alpha() is None
        (masked,) = pictures[1].images
        np.testing.assert_allclose(masked.get_array()[:4, :4], 0.5)
        np.testing.assert_allclose(masked.get_array()[4:], 0)
    assert shown.norm(0.25) == pytest.approx(0.5)  # the mask ratio is in the middle of the colours
    assert bar.get_ylim() == pytest.approx((0.0, 0.9))
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.width <= 1280


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "parts of 2024"
    random = np.random.default_rng(0)
    for side, name in (("left", "良品"), ("right", "scratch")):
        (root / name).mkdir(parents=True)
        for index in range(24):
            pixels = random.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"camera 2 of 3, {index:04d}, {side} side.png")
    return root


FOLDER = ["data=folder", "data.image_size=8", "data.channels=1", "data.patch_size=2", "data.batch_size=8"]


def test_rows_are_named_by_file_and_class_and_by_nothing_absolute(folder, tmp_path, figures):
    recipe = untrained(*FOLDER, f"data.path={folder}", "mask.guidance=0.75", seed=0)
    recipe.write_pictures(tmp_path)
    (figure,) = figures
    labels = [axis.get_ylabel().splitlines() for axis in figure.axes[:-1] if axis.get_ylabel()]
    part = recipe.data.mask
    assert len(labels) == 6
    assert len({name for *_, name in labels}) == 2
    classes = dict(zip(recipe.data.class_names, (0, 1), strict=True))
    known = {}
    for index in part.indices.tolist():
        described = part.images.source.describe_row(index)
        assert described.startswith(str(folder))
        known[described.rpartition("/")[2]] = int(part.images.labels[index])
    for *lines, name in labels:
        shown = name.removeprefix("class ").encode().decode("unicode_escape" if "\\" in name else "utf-8")
        assert known[" ".join(lines)] == classes[shown]
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert not [text for text in texts if "/" in text]
    title = figure.get_suptitle()
    assert f"{max(0, recipe.findings()['mask_predictability']):.2f}" in title
    assert "random masks to a share of 0.25 of the images" in title


def test_a_row_of_a_table_keeps_its_number():
    source = SimpleNamespace(describe_row=lambda row: f"row {row} of /home/user/of mine/train.csv (train)")
    images = SimpleNamespace(source=source)
    part = SimpleNamespace(images=images, indices=torch.tensor([7]), labels=torch.tensor([-1]))
    assert image_label(part, 0, ("good",)) == "row 7 of train.csv\n(train)"


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_policy_has_a_number(policy):
    recipe = untrained(f"mask.policy={policy}", seed=0)
    number = recipe.findings()["mask_predictability"]
    assert -0.001 < number <= 1
    masks = TrainedMasks(recipe.policy, recipe.modules, recipe.data, recipe.device, recipe.settings.seed)
    probabilities = masks.probabilities()
    assert mask_predictability(probabilities) == number  # the same draws again
    torch.testing.assert_close(probabilities.mean(1), torch.full((16,), 0.75))
