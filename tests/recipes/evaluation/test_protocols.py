"""The linear probe and the nearest-neighbour vote against computations written out."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from multilevel.recipes.evaluation.protocols import linear_probe as probe
from multilevel.recipes.evaluation.protocols.knn import nearest_neighbours
from multilevel.recipes.evaluation.protocols.linear_probe import linear_probe

RANDOM = np.random.default_rng(0)


def clusters(count, separation):
    labels = RANDOM.integers(0, 4, count)
    centres = separation * np.eye(4, 6)
    return (centres[labels] + RANDOM.normal(size=(count, 6))).astype(np.float32), labels


def test_nearest_neighbours_is_the_vote_by_cosine_distance():
    features, labels = clusters(200, 1.0)
    others, _ = clusters(50, 1.0)
    unit, unit_others = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (features, others))
    distances = 1 - unit_others @ unit.T
    expected = []
    for row in distances:
        nearest = np.argsort(row)[:20]
        votes = np.zeros(4)
        np.add.at(votes, labels[nearest], 1 / row[nearest])
        expected.append(votes.argmax())
    assert np.array_equal(nearest_neighbours(features, labels, others, 20), expected)


def test_all_vote_where_there_are_fewer_than_the_neighbours():
    features, labels = clusters(5, 1.0)
    assert len(nearest_neighbours(features, labels, features, 20)) == 5


def test_the_probe_separates_what_is_separable_and_nothing_else():
    features, labels = clusters(400, 12.0)
    others, others_labels = clusters(200, 12.0)
    assert (linear_probe(features, labels, others, 0) == others_labels).all()
    features, labels = clusters(400, 0.0)
    others, others_labels = clusters(400, 0.0)
    accuracy = (linear_probe(features, labels, others, 0) == others_labels).mean()
    assert accuracy == pytest.approx(0.25, abs=0.1)  # more than four standard deviations


def test_the_probe_does_not_depend_on_the_features_scale():
    features, labels = clusters(300, 2.0)
    others, _ = clusters(100, 2.0)
    scales = np.array([1e-3, 1, 10, 1, 100, 1], dtype=np.float32)
    agree = linear_probe(features, labels, others, 0) == linear_probe(features * scales, labels, others * scales, 0)
    assert agree.mean() > 0.98


def test_the_probe_works_on_a_handful_of_images():
    features, labels = np.eye(3, 4, dtype=np.float32), np.array([0, 1, 2])
    assert np.array_equal(linear_probe(features, labels, features, 0), labels)


def test_a_probe_that_did_not_converge_says_so(monkeypatch):
    features, labels = clusters(200, 1.0)
    monkeypatch.setattr(probe, "ITERATIONS", 1)
    with pytest.warns(ConvergenceWarning, match="stopped after 1 iterations without converging"):
        linear_probe(features, labels, features, 0)
