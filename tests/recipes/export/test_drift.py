"""The two-sample test holds its level and finds shifts; distances are those of scipy."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import binom, kstest
from sklearn.covariance import ledoit_wolf

from multilevel.recipes.export.drift import (
    DRIFT,
    NO_DRIFT,
    TRAIN_AGAIN,
    compare_features,
    mahalanobis,
    mmd_test,
    separability,
)


def by_pairs(first, second):
    """Equation 3 of Gretton et al. (2012), written out, with the kernel's width by scipy."""
    width = np.median(pdist(np.concatenate([first, second])))

    def mean(some, others, apart):
        values = np.exp(-cdist(some, others, "sqeuclidean") / (2 * width**2))
        pairs = [values[i, j] for i in range(len(some)) for j in range(len(others)) if not (apart and i == j)]
        return np.mean(pairs)

    return mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)


def test_the_statistic_is_that_of_the_paper():
    random = np.random.default_rng(0)
    for first, second in ((9, 6), (4, 13)):
        samples = random.normal(size=(first, 3)), random.normal(0.5, 2, size=(second, 3))
        assert mmd_test(*samples, random, 1)[0] == pytest.approx(by_pairs(*samples), abs=1e-9)


def test_the_p_value_is_that_of_all_divisions():
    random = np.random.default_rng(1)
    points = np.concatenate([random.normal(size=(5, 2)), random.normal(0.8, size=(4, 2))])
    divisions = [list(some) for some in itertools.combinations(range(9), 5)]
    values = [by_pairs(points[some], np.delete(points, some, axis=0)) for some in divisions]
    exact = np.mean(np.array(values) >= values[0] - 1e-12)
    assert 0.02 < exact < 0.5
    estimated = mmd_test(points[:5], points[5:], random, 20_000)[1]
    assert estimated == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


def test_without_a_shift_the_test_holds_its_level():
    found = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        found.append(mmd_test(random.normal(size=(25, 4)), random.normal(size=(15, 4)), random, 399)[1])
    fewest, most = binom.interval(0.999, 200, 0.05)
    assert fewest <= np.sum(np.array(found) < 0.05) <= most
    assert kstest(found, "uniform").pvalue > 0.01


def test_a_shift_is_found():
    found = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        found.append(mmd_test(random.normal(size=(40, 4)), random.normal(1.0, size=(40, 4)), random, 199)[1])
    assert max(found) < 0.05


def test_samples_of_one_point_are_no_drift():
    drift = compare_features(np.ones((10, 3)), np.ones((8, 3)))
    assert (drift.verdict, drift.p_value) == (NO_DRIFT, 1.0)


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, NO_DRIFT), (0.45, DRIFT), (3.0, TRAIN_AGAIN)])
def test_the_verdict_follows_its_rule(shift, verdict):
    random = np.random.default_rng(3)
    drift = compare_features(random.normal(size=(300, 4)), random.normal([shift, 0, 0, 0], size=(150, 4)))
    assert drift.verdict == verdict
    assert (drift.p_value < 0.05) == (verdict != NO_DRIFT)
    assert (drift.separability >= 0.8) == (verdict == TRAIN_AGAIN)


def test_separability_is_the_area_that_the_shift_gives():
    random = np.random.default_rng(4)
    area = separability(random.normal(size=(2000, 1)), random.normal(1.0, size=(2000, 1)), seed=0)
    assert area == pytest.approx(
        0.7602, abs=0.02
    )  # of two unit normals 1 apart: the normal distribution at 1 / sqrt(2)


def test_distances_are_those_of_the_shrunk_covariance():
    random = np.random.default_rng(5)
    reference, new = random.normal(2, [1, 5, 0.1], size=(50, 3)), random.normal(size=(7, 3))
    scaled = (reference - reference.mean(0)) / reference.std(0)
    inverse = np.linalg.inv(ledoit_wolf(scaled)[0])
    points = (new - reference.mean(0)) / reference.std(0)
    expected = cdist(points, scaled.mean(0, keepdims=True), "mahalanobis", VI=inverse)[:, 0]
    np.testing.assert_allclose(mahalanobis(reference, new, 0)[1], expected, rtol=1e-9)


def test_training_images_are_measured_as_new_ones_are():
    random = np.random.default_rng(6)
    mixing = random.normal(size=(40, 40))
    before, after = mahalanobis(random.normal(size=(80, 40)) @ mixing, random.normal(size=(500, 40)) @ mixing, 0)
    assert np.median(after) / np.median(before) == pytest.approx(1, abs=0.1)


def test_too_few_images():
    with pytest.raises(ValueError, match="4 images"):
        compare_features(np.ones((10, 3)), np.ones((4, 3)))
