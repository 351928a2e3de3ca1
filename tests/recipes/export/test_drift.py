"""The verdict follows its rule, keeps groups together and sees optics; distances are those of scipy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import ledoit_wolf

from multilevel.recipes.export.drift import (
    DRIFT,
    NO_DRIFT,
    TRAIN_AGAIN,
    Sample,
    choose_groups,
    compare,
    mahalanobis,
    run_tests,
    separability,
)
from multilevel.recipes.export.optics import MEASURES
from multilevel.recipes.export.two_sample import draw_memberships, holm


def alone(first, second):
    return np.arange(first), np.arange(second)


def test_samples_of_one_point_are_no_drift():
    drift = compare(Sample(np.ones((10, 3))), Sample(np.ones((8, 3))))
    assert (drift.verdict, drift.tests[0].p_value) == (NO_DRIFT, 1.0)


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, NO_DRIFT), (0.45, DRIFT), (3.0, TRAIN_AGAIN)])
def test_the_verdict_follows_its_rule(shift, verdict):
    random = np.random.default_rng(3)
    reference = Sample(random.normal(size=(300, 4)))
    drift = compare(reference, Sample(random.normal([shift, 0, 0, 0], size=(150, 4))))
    assert drift.verdict == verdict
    (test,) = drift.tests
    assert test.adjusted == test.p_value  # of a single test
    assert (test.p_value < 0.05) == (verdict != NO_DRIFT)
    assert (drift.separability >= 0.8) == (verdict == TRAIN_AGAIN)


def test_separability_is_the_area_that_the_shift_gives():
    random = np.random.default_rng(4)
    reference, new = random.normal(size=(2000, 1)), random.normal(1.0, size=(2000, 1))
    area = separability(reference, new, alone(2000, 2000), seed=0)
    # of two unit normals 1 apart: the normal distribution at 1 / sqrt(2)
    assert area == pytest.approx(0.7602, abs=0.02)


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
        compare(Sample(np.ones((10, 3))), Sample(np.ones((4, 3))))


def optical(random, count, **shifts):
    """Features without drift, and optics of unit deviation, some shifted."""
    shift = [shifts.get(name, 0.0) for name in MEASURES]
    return Sample(random.normal(size=(count, 4)), random.normal(shift, size=(count, len(MEASURES))))


@pytest.mark.parametrize("name", ["sharpness", "noise", "height"])
def test_a_change_of_optics_alone_is_drift_and_named(name):
    random = np.random.default_rng(7)
    drift = compare(optical(random, 100), optical(random, 60, **{name: -2.0}))
    assert drift.verdict == DRIFT
    assert [test.name for test in drift.tests if test.changed] == [name]
    assert [test.adjusted for test in drift.tests] == holm([test.p_value for test in drift.tests])
    assert [test.name for test in drift.tests] == ["features", *MEASURES]


def test_eight_tests_have_one_level():
    drifted = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        members = draw_memberships(*alone(40, 30), random)
        drifted += any(test.changed for test in run_tests(optical(random, 40), optical(random, 30), members))
    assert drifted <= 9  # binomial with 5%: more in 1 of 1,000


def test_few_groups_are_no_evidence():
    """Five photographs of each part; the training parts have the same distribution as the new ones."""
    drifted = np.zeros(2, int)
    for seed in range(30):
        random = np.random.default_rng(seed)
        parts = np.repeat(random.normal(size=(50, 3)), 5, axis=0)
        features = parts + 0.01 * random.normal(size=parts.shape)
        thumbnails = np.repeat(random.integers(0, 255, (50, 100), dtype=np.uint8), 5, axis=0)
        groups = np.repeat(np.arange(50), 5)
        reference = Sample(features[:150], groups=groups[:150])
        new = Sample(features[150:], thumbnails=thumbnails[150:])
        kept, notes = choose_groups(reference, new)
        assert not notes
        assert [len(set(part)) for part in kept] == [30, 20]
        for number, parts in enumerate((kept, alone(150, 100))):
            drifted[number] += run_tests(reference, new, draw_memberships(*parts, random))[0].changed
    assert drifted[0] <= 5  # binomial with 5%: more in 3 of 1,000
    assert drifted[1] >= 15


def test_groups_that_cannot_be_permuted_are_said():
    features, groups = np.zeros((100, 1)), np.arange(100) // 5
    thumbnails = np.random.default_rng(0).integers(0, 255, (60, 100), dtype=np.uint8)
    reference, new = Sample(features, groups=groups), Sample(features[:60], thumbnails=thumbnails)
    assert choose_groups(reference, new)[1] == []
    (kept, of_new), notes = choose_groups(Sample(features, groups=groups // 2), new)
    assert (len(set(kept)), len(set(of_new))) == (100, 60)
    assert "of 10 groups only" in notes[0]
    (kept, of_new), notes = choose_groups(reference, Sample(features[:60], thumbnails=thumbnails[np.arange(60) // 20]))
    assert (len(set(kept)), len(set(of_new))) == (20, 60)
    assert "near copies of each other" in notes[0]


def test_near_copies_of_training_images_do_not_make_the_others_unusual():
    random = np.random.default_rng(8)
    parts = random.normal(size=(40, 30))
    before, after = mahalanobis(
        np.repeat(parts, 4, axis=0), random.normal(size=(200, 30)), 0, np.repeat(np.arange(40), 4)
    )
    assert np.median(after) / np.median(before) == pytest.approx(1, abs=0.15)
