"""The linear probe and the nearest-neighbour vote against computations written out."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from multilevel.recipes.evaluation.protocols import linear_probe as probe
from multilevel.recipes.evaluation.protocols.knn import nearest_neighbours
from multilevel.recipes.evaluation.protocols.linear_probe import choose_strength, fit_linear_probe

STRENGTHS = [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100]
#: Of labels [N] and probabilities [N, classes].
METRICS = {
    "accuracy": lambda labels, chances: accuracy_score(labels, chances.argmax(1)),
    "balanced_accuracy": lambda labels, chances: balanced_accuracy_score(labels, chances.argmax(1)),
    "macro_f1": lambda labels, chances: f1_score(labels, chances.argmax(1), average="macro"),
    "macro_roc_auc": lambda labels, chances: roc_auc_score(labels, chances, multi_class="ovr"),
}
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_numbers(monkeypatch):
    """Every test draws the same numbers, whichever tests ran before."""
    monkeypatch.setitem(globals(), "RANDOM", np.random.default_rng(0))


def linear_probe(features, labels, scored, seed, metric="accuracy"):
    """Predicted labels."""
    return fit_linear_probe(features, labels, seed, metric).predict(scored)


def clusters(count, separation):
    labels = RANDOM.integers(0, 4, count)
    centres = separation * np.eye(4, 6)
    return (centres[labels] + RANDOM.normal(size=(count, 6))).astype(np.float32), labels


def test_nearest_neighbours_is_the_vote_by_cosine_distance():
    features, labels = clusters(200, 1.0)
    others, _ = clusters(50, 1.0)
    unit, unit_others = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (features, others))
    distances = 1 - unit_others @ unit.T
    shares = nearest_neighbours(features, labels, others, 20, 4)
    expected = []
    for row in distances:
        nearest = np.argsort(row)[:20]
        votes = np.zeros(4)
        np.add.at(votes, labels[nearest], 1 / row[nearest])
        expected.append(votes.argmax())
        np.testing.assert_allclose(shares[len(expected) - 1], votes / votes.sum(), atol=1e-5)  # float32
    assert np.array_equal(shares.argmax(1), expected)


def test_all_vote_where_there_are_fewer_than_the_neighbours():
    features, labels = clusters(5, 1.0)
    assert nearest_neighbours(features, labels, features, 20, 4).shape == (5, 4)


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


def fitted(strength, features, labels, weights=None):
    """A probe fitted to its optimum from zero."""
    probe = LogisticRegression(C=strength, tol=1e-9, max_iter=20_000, class_weight=weights)
    return make_pipeline(StandardScaler(), probe).fit(features, labels)


def held_out_scores(features, labels, seed, metric, weights=None):
    """The score of every strength on the predictions of all five folds, with a scaler and a probe of its own for each
    strength and fold."""
    scores = []
    for strength in STRENGTHS:
        chances = np.zeros((len(labels), len(np.unique(labels))))
        for fit, held in StratifiedKFold(5, shuffle=True, random_state=seed).split(features, labels):
            chances[held] = fitted(strength, features[fit], labels[fit], weights).predict_proba(features[held])
        scores.append(METRICS[metric](labels, chances))
    return scores


def unbalanced(seed, count=400):
    """Three classes, 85%, 10% and 5% of the images. What tells them apart is small beside what the features share,
    so it takes weak regularization; tails are heavy, so the held-out images change the scales."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, count, p=[0.85, 0.1, 0.05])
    shared = 2 * random.standard_t(2, size=(count, 1))
    return (2 * np.eye(3, 8)[labels] + random.normal(size=(count, 8)) + shared).astype(np.float32), labels


@pytest.fixture
def exact(monkeypatch):
    """Probes fitted to their optimum, so that computations agree to the last prediction."""
    monkeypatch.setattr(probe, "TOLERANCE", 1e-9)
    monkeypatch.setattr(probe, "ITERATIONS", 20_000)


@pytest.mark.parametrize("metric", METRICS)
def test_the_strength_is_the_best_of_all_out_of_fold(metric, exact):
    chosen = []
    weights = None if metric == "accuracy" else "balanced"  # 85% against 5%: above three times
    for seed in range(3):
        features, labels = unbalanced(seed, count=300)
        scores = held_out_scores(features, labels, seed, metric, weights)
        chosen.append(STRENGTHS[int(np.argmax(scores))])
        assert choose_strength(features, labels, seed, metric) == chosen[-1]
        others = unbalanced(seed + 100)[0]
        expected = fitted(chosen[-1], features, labels, weights).predict_proba(others)
        found = fit_linear_probe(features, labels, seed, metric).predict_proba(others)
        np.testing.assert_allclose(found, expected, atol=2e-3)  # both stop near the optimum, in float32
    assert set(chosen) != {STRENGTHS[0]}


def test_few_images_are_divided_five_times(exact):
    features, labels = clusters(100, 1.0)
    divisions = [held_out_scores(features, labels, 7 + repeat, "accuracy") for repeat in range(5)]
    assert choose_strength(features, labels, 7, "accuracy") == STRENGTHS[int(np.mean(divisions, axis=0).argmax())]
    assert len({int(np.argmax(scores)) for scores in divisions}) > 1


def test_of_many_images_one_fold_is_held_out(monkeypatch):
    features, labels = unbalanced(0)
    sizes = []
    monkeypatch.setattr(probe, "FEW", 400)
    monkeypatch.setattr(
        probe, "_fit", lambda probe, features, labels: sizes.append(len(labels)) or probe.fit(features, labels)
    )
    fit_linear_probe(features, labels, 0)
    assert sizes == [320] * 7 + [400]


def grouped(seed, metric="accuracy"):
    """Forty parts of ten photographs each: a part's photographs are nearly equal, and its class is a toss of a coin,
    so whoever sees a part on both sides of a fold finds it."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(40), 10)
    features = 3 * random.normal(size=(40, 60))[groups] + 0.1 * random.normal(size=(400, 60))
    return features.astype(np.float32), random.integers(0, 2, 40)[groups], groups


def test_the_folds_of_the_probe_keep_groups_together(exact, monkeypatch):
    features, labels, groups = grouped(0)
    scores = []
    for strength in STRENGTHS:
        chances = np.zeros((400, 2))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(features, labels, groups)
        for fit, held in folds:
            chances[held] = fitted(strength, features[fit], labels[fit]).predict_proba(features[held])
        scores.append(METRICS["accuracy"](labels, chances))
    assert max(scores) < 0.7
    assert max(held_out_scores(features, labels, 0, "accuracy")) == 1  # near copies give the classes away
    assert choose_strength(features, labels, 0, "accuracy", groups) == STRENGTHS[int(np.argmax(scores))]
    seen = []
    monkeypatch.setattr(probe, "out_of_fold", lambda path, folds: seen.extend(folds) or ([0], np.zeros((1, 7, 2))))
    choose_strength(features, labels, 0, "accuracy", groups)
    assert len(seen) == 5
    assert all(not set(groups[fit]) & set(groups[held]) for fit, held in seen)


def test_held_out_images_have_no_part_in_the_scaler():
    """One image of 500 times the others' size: a scaler that sees it leaves nothing of the others."""
    features, labels = clusters(400, 3.0)
    features[17] *= 500
    seen = []

    class Spy(StandardScaler):
        def fit(self, features):
            seen.append(np.abs(features).max())
            return super().fit(features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "StandardScaler", Spy)
        fit_linear_probe(features, labels, 0)
    outlier = np.abs(features[17]).max()
    assert seen[0] == outlier  # of the final probe
    assert sorted(value == outlier for value in seen[1:]) == [False, True, True, True, True]


def test_permuted_labels_are_predicted_at_chance_through_the_whole_choice():
    """Unbalanced classes, many features: balanced accuracy is 1/3 on average for whatever is fitted to permuted labels.

    The bound is three standard errors of a mean over five seeds of a score with the recalls of 340, 40 and 20 images.
    """
    found = []
    for seed in range(5):
        features, labels = unbalanced(seed)
        others, truth = unbalanced(seed + 100)
        permuted = np.random.default_rng(seed).permutation(labels)
        found.append(
            balanced_accuracy_score(truth, linear_probe(features, permuted, others, seed, "balanced_accuracy"))
        )
    variances = [1 / 3 * 2 / 3 / images for images in (340, 40, 20)]
    assert np.mean(found) == pytest.approx(1 / 3, abs=3 * np.sqrt(sum(variances) / 9 / 5))


def test_the_majority_class_is_not_what_a_balanced_probe_predicts():
    features, labels = unbalanced(0)
    others, others_labels = unbalanced(100)
    majority = fitted(STRENGTHS[0], features, labels).predict(others)
    assert balanced_accuracy_score(others_labels, majority) == pytest.approx(1 / 3)
    predicted = linear_probe(features, labels, others, 0, "balanced_accuracy")
    assert balanced_accuracy_score(others_labels, predicted) > 0.7


def test_weights_are_for_unbalanced_classes_and_other_metrics_than_the_accuracy():
    few, many = np.repeat([0, 1], [100, 301]), np.repeat([0, 1], [100, 300])
    assert probe._new_probe(few, "balanced_accuracy").class_weight == "balanced"
    assert probe._new_probe(few, "macro_roc_auc").class_weight == "balanced"
    assert probe._new_probe(few, "accuracy").class_weight is None
    assert probe._new_probe(many, "balanced_accuracy").class_weight is None


def test_of_equal_strengths_the_strongest_regularization_is_chosen():
    features, labels = clusters(400, 12.0)
    scores = held_out_scores(features, labels, 0, "accuracy")
    assert scores[0] < 1
    assert scores[1:] == [1.0] * 6
    assert choose_strength(features, labels, 0, "accuracy") == STRENGTHS[1]


def test_where_no_image_can_be_held_out_the_strength_is_scikit_learns():
    features = RANDOM.normal(size=(6, 3)).astype(np.float32)
    assert choose_strength(features, np.array([0, 1, 2, 3, 4, 5]), 0, "accuracy") == 1.0  # one image a class
    pairs = np.array([0, 0, 0, 1, 1, 1])
    assert choose_strength(features, pairs, 0, "accuracy", groups=pairs) == 1.0  # a fold would fit to a single class


def test_scored_images_have_no_part_in_the_probe():
    features, labels = unbalanced(0)
    others = unbalanced(100)[0]
    expected = linear_probe(features, labels, others, 0)
    among_outliers = linear_probe(features, labels, np.concatenate([others, 1e4 * others]), 0)[: len(others)]
    assert np.array_equal(among_outliers, expected)
