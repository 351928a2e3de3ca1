"""Paired comparisons: measures as scikit-learn computes them, intervals that cover, a verdict that follows its rule."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from multilevel.recipes.export import paired
from multilevel.recipes.export.paired import (
    Comparison,
    Draws,
    Predictions,
    Row,
    compare,
    decide,
    mcnemar,
    more_images,
    roc,
)

REPEATS = 200


def answers(random, labels, classes, skill):
    logits = random.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(probabilities.argmax(1), probabilities)


@pytest.mark.parametrize("classes", [2, 4])
def test_measures_are_those_of_scikit_learn(classes):
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes), random.integers(classes, size=150)])
    old, new = answers(random, labels, classes, 0.5), answers(random, labels, classes, 1.5)
    names = [str(number) for number in range(classes)]
    compared = compare(labels, names, old, new)
    for side, model in (("old", old), ("new", new)):
        recalls = recall_score(labels, model.predicted, average=None)
        scores = model.probabilities[:, 1] if classes == 2 else model.probabilities
        for row, expected in [
            (compared.accuracy, accuracy_score(labels, model.predicted)),
            (compared.balanced_accuracy, recalls.mean()),
            (compared.area, roc_auc_score(labels, scores, multi_class="ovr")),
            *zip(compared.recalls, recalls, strict=True),
        ]:
            assert getattr(row, side) == pytest.approx(expected, abs=1e-12), row.name
    for row in (compared.accuracy, compared.balanced_accuracy, compared.area):
        assert row.interval[0] < row.difference < row.interval[1]


def test_weighted_areas_are_those_of_scikit_learn_with_ties():
    random = np.random.default_rng(1)
    scores, positive = random.integers(6, size=40) / 5, random.random(40) < 0.4
    weights = random.integers(4, size=(5, 40))
    found = roc(scores, positive)(weights)
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_mcnemar_is_the_binomial_tail():
    for only_new, only_old in ((9, 1), (1, 9), (12, 7), (3, 3), (0, 0)):
        total, less = only_new + only_old, min(only_new, only_old)
        assert mcnemar(only_new, only_old) == pytest.approx(min(1, 2 * binom.cdf(less, total, 0.5)), abs=1e-12)


def covers(make, truth):
    """How many of ``REPEATS`` intervals cover the truth."""
    covered = 0
    for seed in range(REPEATS):
        low, high = make(np.random.default_rng(seed), seed)
        covered += low <= truth <= high
    return covered


def drawn(random, count, rates):
    """Whether (old, new) are right, for images whose four outcomes have these rates: both, only new, only old, none."""
    outcomes = random.choice(4, size=count, p=rates)
    return np.isin(outcomes, [0, 2]), np.isin(outcomes, [0, 1])


def named(right, labels):
    predicted = np.where(right, labels, 1 - labels)
    return Predictions(predicted, np.eye(2)[predicted])


def interval_of(old, new, labels, units, seed):
    """That of balanced accuracy, without the areas, which take longer."""
    draws = Draws(labels, units, seed)
    means = [draws.means(new.astype(float) - old, labels == number) for number in (0, 1)]
    return np.quantile(np.mean(means, axis=0), [0.025, 0.975])


def test_the_interval_is_the_comparisons():
    labels = np.repeat([0, 1], [150, 30])
    old, new = drawn(np.random.default_rng(3), 180, [0.7, 0.15, 0.05, 0.1])
    found = compare(labels, "ab", named(old, labels), named(new, labels), seed=4).balanced_accuracy.interval
    np.testing.assert_allclose(found, interval_of(old, new, labels, np.arange(180), 4), atol=1e-12)


@pytest.fixture
def few_resamples(monkeypatch):
    """For tests that repeat the bootstrap many times."""
    monkeypatch.setattr(paired, "RESAMPLES", 400)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(("rates", "rare"), [([0.7, 0.15, 0.05, 0.1], 30), ([0.96, 0.01, 0.01, 0.02], 12)])
def test_intervals_of_balanced_accuracy_cover(rates, rare):
    labels = np.repeat([0, 1], [150, rare])

    def make(random, seed):
        return interval_of(*drawn(random, len(labels), rates), labels, np.arange(len(labels)), seed)

    assert covers(make, rates[1] - rates[2]) >= binom.ppf(0.001, REPEATS, 0.95)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("known", [True, False])
def test_groups_widen_the_interval_so_that_it_covers(known):
    labels, groups = np.repeat([0, 1], 120), np.repeat(np.arange(40), 6)

    def make(random, seed):
        sides = [np.repeat(side, 6) for side in drawn(random, 40, [0.6, 0.2, 0.1, 0.1])]  # the six of a part agree
        return interval_of(*sides, labels, groups if known else np.arange(240), seed)

    covered = covers(make, 0.1)
    assert covered >= binom.ppf(0.001, REPEATS, 0.95) if known else covered < 0.8 * REPEATS


def test_with_groups_there_is_no_exact_test():
    labels = np.repeat([0, 1], 12)
    model = named(np.full(24, True), labels)
    assert compare(labels, "ab", model, model).p_value == 1
    assert compare(labels, "ab", model, model, np.repeat(np.arange(12), 2)).p_value is None


def test_equal_answers_decide_nothing_about_few_images():
    labels = np.repeat([0, 1], [200, 6])
    same = named(np.full(206, True), labels)
    low, high = compare(labels, "ab", same, same).recalls[1].interval
    assert low < -0.1
    assert high > 0.1


def test_a_class_that_a_model_lacks_is_missed_and_has_no_area():
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], 30)
    new = answers(random, labels, 3, 2.0)
    probabilities = new.probabilities.copy()
    probabilities[:, 2] = np.nan
    old = Predictions(np.where(labels == 2, -1, new.predicted), probabilities)
    compared = compare(labels, "abc", old, new)
    assert compared.recalls[2].old == 0
    two = [roc_auc_score(labels == number, new.probabilities[:, number]) for number in (0, 1)]
    assert compared.area.new == pytest.approx(np.mean(two))


@pytest.mark.parametrize(
    ("interval", "fewest", "verdict"),
    [
        ((0.004, 0.02), 20, "promote"),
        ((0.004, 0.009), 20, "keep"),
        ((-0.05, -0.01), 20, "keep"),
        ((-0.01, 0.02), 20, "not decided"),
        ((0.004, 0.02), 4, "not decided"),
        ((0.0, 0.0), 20, "not decided"),
    ],
)
def test_the_verdict_follows_its_rule(interval, fewest, verdict):
    row = Row("balanced accuracy", 100, 0.5, 0.5 + sum(interval) / 2, interval)
    compared = Comparison(row, None, row, (), None, 100, fewest)
    assert decide(row, compared, 0.01) == verdict


def test_the_number_of_images_that_would_decide():
    """A paired z test of 80% power needs (1.96 + 0.8416)^2 deviation^2 / effect^2 images."""
    deviation, images, difference = 0.5, 100, 0.05
    half = 1.959964 * deviation / np.sqrt(images)
    row = Row("accuracy", images, 0.8, 0.8 + difference, (difference - half, difference + half))
    assert more_images(row, 0.01) == pytest.approx((1.959964 + 0.841621) ** 2 * 0.25 / 0.0025 - images, abs=1)
