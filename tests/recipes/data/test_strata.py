from __future__ import annotations

import numpy as np
import pytest

from multilevel.recipes.data.strata import apportion, cut_share, limit_rows, random_for


@pytest.fixture
def labels():
    return random_for(0, "labels").permutation(np.repeat([0, 1, 2, 3], [100, 50, 7, 2]))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("keep", [1, 2])
def test_cut_is_in_proportion_in_every_class(labels, share, keep):
    rows = np.arange(len(labels))
    rest, cut = cut_share(labels, rows, share, keep, random_for(0, "test"))
    assert sorted([*rest, *cut]) == rows.tolist()
    for label in range(4):
        size, count = (labels == label).sum(), (labels[cut] == label).sum()
        assert count <= max(size - keep, 0)
        if size > keep:
            assert count >= 1
            assert abs(count - share * size) <= 1 or count in (1, size - keep)


def test_no_share_cuts_nothing(labels):
    rest, cut = cut_share(labels, np.arange(len(labels)), 0.0, 1, random_for(0, "test"))
    assert len(rest) == len(labels)
    assert len(cut) == 0


def test_classes_of_one_image_are_divided_together():
    labels = np.arange(100)
    rest, cut = cut_share(labels, labels, 0.2, 1, random_for(0, "test"))
    assert (len(rest), len(cut)) == (80, 20)


def test_only_the_rows_given_are_divided(labels):
    rows = np.arange(0, len(labels), 2)
    rest, cut = cut_share(labels, rows, 0.3, 1, random_for(0, "test"))
    assert sorted([*rest, *cut]) == rows.tolist()


def test_limit_keeps_the_proportions(labels):
    kept = limit_rows(labels, np.arange(len(labels)), 53, random_for(0, "limit"))
    assert len(set(kept.tolist())) == 53
    counts = np.bincount(labels[kept], minlength=4)
    assert abs(counts[0] - 100 * 53 / 159) <= 1
    assert abs(counts[1] - 50 * 53 / 159) <= 1
    assert counts[3] == 2


@pytest.mark.parametrize("limit", [None, 159, 1000])
def test_limit_above_the_size_keeps_all(labels, limit):
    kept = limit_rows(labels, np.arange(len(labels)), limit, random_for(0, "limit"))
    assert kept.tolist() == list(range(len(labels)))


@pytest.mark.parametrize("total", range(1, 61))
def test_apportioned_numbers_add_up_and_fit(total):
    sizes = np.array([40, 1, 3, 2, 14])
    counts = apportion(sizes, total)
    assert counts.sum() == total
    assert (counts <= sizes).all()
    assert (counts >= 0).all()
    if total >= np.minimum(sizes, 2).sum():
        assert (counts >= np.minimum(sizes, 2)).all()


def test_purposes_draw_independently():
    assert random_for(1, "mask").random() == random_for(1, "mask").random()
    draws = {random_for(seed, purpose).random() for seed in (0, 1) for purpose in ("mask", "test", "limit")}
    assert len(draws) == 6
