"""The linear probe and the nearest-neighbour vote against computations written out."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from multilevel.recipes.evaluation.protocols import linear_probe as probe
from multilevel.recipes.evaluation.protocols.knn import nearest_neighbours
from multilevel.recipes.evaluation.protocols.linear_probe import choose_strength, linear_probe

STRENGTHS = [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100]
METRICS = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "macro_f1": lambda labels, predicted: f1_score(labels, predicted, average="macro"),
}
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


def fitted(strength, features, labels):
    """A probe fitted to its optimum from zero."""
    probe = LogisticRegression(C=strength, tol=1e-9, max_iter=20_000)
    return make_pipeline(StandardScaler(), probe).fit(features, labels)


def held_out_scores(features, labels, seed, metric):
    """The score of every strength on a stratified fifth, with a scaler and a probe of its own for each."""
    ((fit, held),) = StratifiedShuffleSplit(1, test_size=0.2, random_state=seed).split(features, labels)
    probes = [fitted(strength, features[fit], labels[fit]) for strength in STRENGTHS]
    return [METRICS[metric](labels[held], one.predict(features[held])) for one in probes]


def unbalanced(seed, count=400):
    """Three classes, 85%, 10% and 5% of the images. What tells them apart is small beside what the features share,
    so it takes weak regularization; tails are heavy, so the held-out images change the scales."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, count, p=[0.85, 0.1, 0.05])
    shared = 2 * random.standard_t(2, size=(count, 1))
    return (2 * np.eye(3, 8)[labels] + random.normal(size=(count, 8)) + shared).astype(np.float32), labels


@pytest.mark.parametrize("metric", METRICS)
def test_the_strength_is_the_best_of_all_on_held_out_images(metric, monkeypatch):
    monkeypatch.setattr(probe, "TOLERANCE", 1e-9)
    monkeypatch.setattr(probe, "ITERATIONS", 20_000)
    chosen = []
    for seed in range(8):
        features, labels = unbalanced(seed)
        scores = held_out_scores(features, labels, seed, metric)
        chosen.append(STRENGTHS[int(np.argmax(scores))])
        assert choose_strength(features, labels, seed, metric) == chosen[-1]
        others = unbalanced(seed + 100)[0]
        expected = fitted(chosen[-1], features, labels).predict(others)
        assert np.array_equal(linear_probe(features, labels, others, seed, metric), expected)
    assert len(set(chosen)) > 1


def test_the_majority_class_does_not_end_the_choice():
    features, labels = unbalanced(0)
    others, others_labels = unbalanced(100)
    scores = held_out_scores(features, labels, 0, "accuracy")
    assert scores[0] == scores[1] > scores[2]  # a rule that stops at the first that does worse stays with the first
    majority = fitted(STRENGTHS[0], features, labels).predict(others)
    assert balanced_accuracy_score(others_labels, majority) == pytest.approx(1 / 3)
    predicted = linear_probe(features, labels, others, 0, "balanced_accuracy")
    assert balanced_accuracy_score(others_labels, predicted) > 0.55


def test_of_equal_strengths_the_strongest_regularization_is_chosen():
    features, labels = clusters(400, 12.0)
    scores = held_out_scores(features, labels, 0, "accuracy")
    assert scores[0] < 1
    assert scores[1:] == [1.0] * 6
    assert choose_strength(features, labels, 0, "accuracy") == STRENGTHS[1]


def test_scored_images_have_no_part_in_the_probe():
    features, labels = unbalanced(0)
    others = unbalanced(100)[0]
    expected = linear_probe(features, labels, others, 0)
    among_outliers = linear_probe(features, labels, np.concatenate([others, 1e4 * others]), 0)[: len(others)]
    assert np.array_equal(among_outliers, expected)
