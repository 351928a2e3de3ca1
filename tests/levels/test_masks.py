"""Mask policies hide the patches that they should, as often as they should."""

import itertools
import math

import pytest
import torch

from multilevel.levels import MaskedAutoencoder
from multilevel.levels.masks import POLICIES, MaskView
from multilevel.levels.masks.statistics import mask_statistics, normalized_entropy
from multilevel.solvers import SettingError

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 0.0, -3.0]])
DRAWS = 40_000


def refuse():
    raise AssertionError("not asked for")


def view(count=1, patches=5, hidden=3, images=None, logits=None, attention=None):
    """What a policy sees; whatever is not given must not be asked for."""
    images = torch.zeros(count, 1, 8, 8) if images is None else images
    given = [refuse if one is None else lambda one=one: one for one in (logits, attention)]
    return MaskView(images, patches, hidden, *given)


def seeded_scores(policy, seen, **options):
    torch.manual_seed(0)
    return POLICIES[policy](**options).scores(seen)


def first_hidden(policy, seen):
    """Share of draws in which each patch has the largest score."""
    return torch.bincount(seeded_scores(policy, seen).argmax(1), minlength=seen.patches) / DRAWS


def within_four_deviations(found, expected):
    return bool(((found - expected).abs() < 4 * (expected * (1 - expected) / DRAWS).sqrt()).all())


def test_what_trains_the_masking_network():
    assert {name: policy.learns_from for name, policy in POLICIES.items()} == {
        "adversarial": "reconstruction", "attention": None, "block": None, "random": None, "sampled": "downstream",
        "stratified": "downstream", "topk": "downstream", "variance": None, "weighted": "downstream",
    }  # fmt: skip


def test_topk_hides_the_most_probable_without_chance():
    assert torch.equal(seeded_scores("topk", view(logits=LOGITS)).argsort(), LOGITS.argsort())


@pytest.mark.parametrize(("patches", "hidden"), [(16, 12), (64, 48), (9, 5), (5, 4), (4, 1)])
def test_stratified_leaves_one_patch_of_each_run_of_neighbours_in_rank(patches, hidden):
    torch.manual_seed(1)
    logits, visible = torch.randn(1, patches).expand(DRAWS // 10, -1), patches - hidden
    scores = seeded_scores("stratified", view(len(logits), patches, hidden, logits=logits))
    seen = scores.topk(visible, largest=False).indices
    ranks = logits[0].argsort(descending=True).argsort()[seen]
    runs = [[rank for rank in range(patches) if rank * visible // patches == run] for run in range(visible)]
    assert torch.equal((ranks * visible // patches).sort(1).values, torch.arange(visible).expand(len(seen), -1))
    counts = torch.bincount(ranks.flatten(), minlength=patches)
    for run in runs:  # any of its patches
        assert counts[run] == pytest.approx(len(seen) / len(run), rel=0.12)


@pytest.mark.parametrize("policy", ["random", "weighted"])
def test_random_masks_hide_every_patch_alike(policy):
    assert within_four_deviations(first_hidden(policy, view(DRAWS)), torch.full((5,), 0.2))


@pytest.mark.parametrize("policy", ["sampled", "adversarial"])
def test_sampled_hides_in_proportion_to_the_probability(policy):
    probabilities = LOGITS[0].sigmoid()
    found = first_hidden(policy, view(DRAWS, logits=LOGITS.expand(DRAWS, -1)))
    assert within_four_deviations(found, probabilities / probabilities.sum())


def test_sampled_draws_without_replacement():
    """The second hidden patch is drawn in proportion among those that are left (Plackett-Luce)."""
    order = seeded_scores("sampled", view(DRAWS, logits=LOGITS.expand(DRAWS, -1))).argsort(1, descending=True)
    weights = LOGITS[0].sigmoid()
    expected = torch.zeros(5)
    for first in range(5):
        left = weights.clone()
        left[first] = 0
        expected += weights[first] / weights.sum() * left / left.sum()
    assert within_four_deviations(torch.bincount(order[:, 1], minlength=5) / DRAWS, expected)


def test_variance_hides_in_proportion_to_the_variance_of_the_pixels():
    image = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))  # 2 channels, 9 patches of 2 x 2
    expected = torch.stack(
        [image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].var() for row in range(3) for column in range(3)]
    )
    found = first_hidden("variance", view(patches=9, images=image.expand(DRAWS, -1, -1, -1)))
    assert within_four_deviations(found, expected / expected.sum())


def test_attention_hides_what_is_attended_to_most():
    attention = torch.rand(6, 16, generator=torch.Generator().manual_seed(1))
    scores = seeded_scores("attention", view(6, 16, 8, attention=attention))
    assert torch.equal(scores.argsort(), attention.argsort())


def test_attention_hints_show_some_of_the_most_attended_patches():
    attention = torch.arange(16.0).expand(2000, -1) / 16  # the last 8 would be hidden
    scores = seeded_scores("attention", view(2000, 16, 8, attention=attention), hint=0.125)
    hidden = scores.argsort(1).argsort(1) >= 8
    assert hidden.sum(1).eq(8).all()
    assert hidden[:, 8:].sum(1).eq(6).all()  # 2 of 16 are shown
    assert hidden[:, 6:8].all()  # the next ones are hidden in their place
    shown = 1 - hidden[:, 8:].double().mean(0)
    assert ((shown - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / 2000)).all()


@pytest.mark.parametrize("hint", [-0.1, 1.0, "much"])
def test_a_hint_that_is_no_share_is_named(hint):
    with pytest.raises(SettingError, match=rf"mask\.options\.hint: got '?{hint}'?; expected a share"):
        POLICIES["attention"](hint=hint)


def test_the_attention_of_the_encoder_is_what_transformers_gives():
    torch.manual_seed(0)
    model = MaskedAutoencoder.of_size(
        image_size=16, channels=3, patch_size=4, width=24, depth=3, heads=3,
        decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.75,
    )  # fmt: skip
    images = torch.randn(5, 3, 16, 16)
    found = model.class_attention(images)
    model.mae.vit.config.mask_ratio = 0.0
    model.mae.set_attn_implementation("eager")
    in_order = torch.arange(16.0).expand(5, -1)
    attentions = model.mae.vit(images, noise=in_order, output_attentions=True).attentions
    assert len(attentions) == 3
    torch.testing.assert_close(found, attentions[-1][:, :, 0, 1:].mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "ratio"), [(4, 0.75), (8, 0.75), (14, 0.4), (14, 0.75)])
def test_blocks_hide_rectangles_up_to_the_last_one(side, ratio):
    patches, hidden = side * side, side * side - int(side * side * (1 - ratio))
    scores = seeded_scores("block", view(200, patches, hidden))
    order = scores.floor().view(200, side, side)  # the earlier the block, the larger; 0: in none
    masks = (scores.argsort(1).argsort(1) >= patches - hidden).view(200, side, side)
    assert masks.flatten(1).sum(1).eq(hidden).all()
    for image, mask in zip(order, masks, strict=True):
        assert image[mask].min() > 0  # blocks hide enough
        first = image == image.max()
        rows, columns = first.any(1).nonzero()[:, 0], first.any(0).nonzero()[:, 0]
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert first.sum() == area  # a rectangle
        assert area <= 0.4 * patches * 1.4 + 2  # sides are rounded
        whole = [level for level in image[mask].unique() if level > image[mask].min()]
        assert all(mask[image == level].all() for level in whole)  # only the last is hidden in part


def test_blocks_are_more_contiguous_than_random_masks():
    def neighbours(policy):
        scores = seeded_scores(policy, view(500, 196, 98))
        mask = (scores.argsort(1).argsort(1) >= 98).view(500, 14, 14)
        return (mask[:, 1:] == mask[:, :-1]).double().mean()

    assert neighbours("random") == pytest.approx(0.5, abs=0.02)
    assert neighbours("block") > 0.75


def entropy(weights):
    total = sum(weights)
    return -sum(one / total * math.log(one / total) for one in weights)


@pytest.mark.parametrize("counted", [[True] * 5, [True, False, True, True, False]])
def test_statistics_are_those_counted_one_by_one(counted):
    torch.manual_seed(0)
    probabilities = torch.rand(5, 8) ** 3
    hidden = torch.rand(5, 8).argsort(1).argsort(1) >= 5
    found = mask_statistics(probabilities, hidden, torch.tensor(counted))
    p, h = ([row for row, kept in zip(some.tolist(), counted, strict=True) if kept] for some in (probabilities, hidden))
    pairs = list(itertools.combinations(h, 2))
    overlap = sum(sum(a and b for a, b in zip(one, other, strict=True)) / 3 for one, other in pairs) / len(pairs)
    expected = {
        "entropy_over_patches": sum(entropy(row) for row in p) / len(p) / math.log(8),
        "entropy_over_images": sum(entropy(column) for column in zip(*p, strict=True)) / 8 / math.log(len(p)),
        "never_hidden": sum(not any(column) for column in zip(*h, strict=True)) / 8,
        "overlap": overlap,
        "excess_overlap": (overlap - 3 / 8) / (1 - 3 / 8),
    }
    assert {key: value.item() for key, value in found.items()} == pytest.approx(expected, rel=1e-6)


def test_statistics_at_their_ends():
    same = torch.tensor([[True, False, False, True]]).expand(6, -1)
    found = mask_statistics(torch.tensor([[0.5, 0.1, 0.2, 0.9]]).expand(6, -1), same, torch.ones(6, dtype=bool))
    assert found["overlap"] == found["excess_overlap"] == 1
    assert found["entropy_over_images"] == pytest.approx(1)
    assert found["never_hidden"] == 0.5
    for count in (0, 1):
        few = mask_statistics(torch.full((6, 4), 0.5), same, torch.arange(6) < count)
        assert few["overlap"] == few["excess_overlap"] == few["entropy_over_images"] == 0
        assert few["entropy_over_patches"] == pytest.approx(count)


def test_normalized_entropy():
    assert normalized_entropy(torch.full((3, 7), 0.2)) == pytest.approx(1)
    weights = torch.tensor([[0.1, 0.7, 0.3], [0.5, 0.5, 1e-9]])
    expected = sum(entropy(row) for row in weights.tolist()) / 2 / math.log(3)
    assert normalized_entropy(weights).item() == pytest.approx(expected, rel=1e-5)
