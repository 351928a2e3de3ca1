"""Mask policies hide the patches that they should, as often as they should."""

import torch

from multilevel.levels.masks import POLICIES

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 0.0, -3.0]])
DRAWS = 40_000


def first_hidden(policy, logits):
    """Share of draws in which each patch has the largest score."""
    torch.manual_seed(0)
    scores = POLICIES[policy]().scores(logits.expand(DRAWS, -1))
    return torch.bincount(scores.argmax(1), minlength=logits.shape[1]) / DRAWS


def within_four_deviations(found, expected):
    return bool(((found - expected).abs() < 4 * (expected * (1 - expected) / DRAWS).sqrt()).all())


def test_topk_hides_the_most_probable_without_chance():
    assert torch.equal(POLICIES["topk"]().scores(LOGITS).argsort(), LOGITS.argsort())


def test_random_hides_every_patch_alike():
    assert within_four_deviations(first_hidden("random", LOGITS), torch.full((5,), 0.2))
    assert not POLICIES["random"].guided


def test_sampled_hides_in_proportion_to_the_probability():
    probabilities = LOGITS[0].sigmoid()
    assert within_four_deviations(first_hidden("sampled", LOGITS), probabilities / probabilities.sum())


def test_sampled_draws_without_replacement():
    """The second hidden patch is drawn in proportion among those that are left (Plackett-Luce)."""
    torch.manual_seed(0)
    order = POLICIES["sampled"]().scores(LOGITS.expand(DRAWS, -1)).argsort(1, descending=True)
    weights = LOGITS[0].sigmoid()
    expected = torch.zeros(5)
    for first in range(5):
        left = weights.clone()
        left[first] = 0
        expected += weights[first] / weights.sum() * left / left.sum()
    assert within_four_deviations(torch.bincount(order[:, 1], minlength=5) / DRAWS, expected)
