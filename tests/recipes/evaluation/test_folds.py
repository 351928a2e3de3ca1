"""Folds by group and predictions out of fold."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from multilevel.recipes.evaluation import grouped_folds, out_of_fold


def images(seed, count=300, groups=60):
    """Labels of four classes, one of them rare, and groups of unequal size."""
    random = np.random.default_rng(seed)
    return random.choice(4, count, p=[0.6, 0.2, 0.18, 0.02]), random.zipf(1.5, count) % groups


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alone", [True, False])
def test_every_image_is_held_out_once_and_no_group_is_on_both_sides(seed, alone):
    labels, groups = images(seed)
    groups = np.arange(len(labels)) if alone else groups
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = grouped_folds(labels, groups, 5, seed)
    assert len(folds) == 5
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(len(labels)))
    for fit, held in folds:
        assert sorted([*fit, *held]) == list(range(len(labels)))
        assert not set(groups[fit]) & set(groups[held])
        if alone:
            for label in range(4):
                assert abs((labels[held] == label).sum() - (labels == label).sum() / 5) < 1


def test_folds_depend_on_the_seed_alone():
    labels, groups = images(0)
    first, again, other = (grouped_folds(labels, groups, 5, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one[1], two[1]) for one, two in zip(first, again, strict=True))
    assert any(not np.array_equal(one[1], two[1]) for one, two in zip(first, other, strict=True))


def test_small_classes_and_few_groups_make_fewer_folds():
    labels = np.array([0] * 20 + [1])
    assert len(grouped_folds(labels, np.arange(21), 5, 0)) == 5  # the single image of class 1 is held out once
    assert len(grouped_folds(np.array([0, 0, 0, 1, 1]), np.arange(5), 5, 0)) == 3
    assert len(grouped_folds(labels, np.arange(21) % 3, 5, 0)) == 3
    assert grouped_folds(labels, np.zeros(21, int), 5, 0) == []
    assert grouped_folds(np.arange(4), np.arange(4), 5, 0) == []


def test_predictions_out_of_fold_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 2)), random.normal(size=12)
    folds = [(np.delete(np.arange(12), row), np.array([row])) for row in random.permutation(12)]
    positions, predicted = out_of_fold(lambda fit, held: LinearRegression().fit(x[fit], y[fit]).predict(x[held]), folds)
    assert np.array_equal(positions, np.arange(12))
    np.testing.assert_allclose(predicted, cross_val_predict(LinearRegression(), x, y, cv=LeaveOneOut()), rtol=1e-12)


def test_some_folds_predict_some_images_and_no_image_twice():
    folds = grouped_folds(*images(0), 5, 0)
    positions, predicted = out_of_fold(lambda fit, held: np.stack([held, held], 1), folds[1:3])
    assert np.array_equal(positions, np.sort(np.concatenate([folds[1][1], folds[2][1]])))
    assert np.array_equal(predicted[:, 1], positions)
    with pytest.raises(ValueError, match="two folds"):
        out_of_fold(lambda fit, held: held, [folds[0], folds[0]])
    with pytest.raises(ValueError, match="no folds"):
        out_of_fold(lambda fit, held: held, [])
