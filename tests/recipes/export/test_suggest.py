"""Suggestions: gradients by autograd, and labels by suggestion teach more than labels at random."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from multilevel.recipes.export.suggest import UNUSUAL, choose, gradients

WIDTH, LABELS, RANDOM_DRAWS = 16, 40, 5


def images(random, count, centers):
    """Features of unbalanced classes, 85% of them the first, each of three kinds."""
    labels = random.choice(4, size=count, p=[0.85, 0.07, 0.05, 0.03])
    return centers[labels, random.integers(3, size=count)] + 0.6 * random.normal(size=(count, WIDTH)), labels


def test_suggested_labels_teach_more_than_random_ones():
    """Balanced accuracy of a logistic regression with four labels per class and 40 more, suggested or drawn at random
    (the mean of five draws). Measured on seeds 0 to 4: 0.9, 7.1, 6.5, 7.7 and 11.9 points better, 6.8 on average, with
    a standard error of 1.8; two of these below it are 3.2."""
    gains = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        centers = random.normal(size=(4, 3, WIDTH))
        (features, labels), (new, truth) = images(random, 1500, centers), images(random, 3000, centers)
        first = np.concatenate([np.flatnonzero(labels == number)[:4] for number in range(4)])
        pool = np.setdiff1d(np.arange(len(labels)), first)

        def fitted(rows, features=features, labels=labels):
            return LogisticRegression(class_weight="balanced", max_iter=500).fit(features[rows], labels[rows])

        def score(added, first=first, new=new, truth=truth, fitted=fitted):
            return balanced_accuracy_score(truth, fitted(np.concatenate([first, added])).predict(new))

        chosen = choose(features[pool], fitted(first).predict_proba(features[pool]), None, LABELS, seed=seed)
        assert len({choice.row for choice in chosen}) == LABELS
        drawn = [score(random.choice(pool, LABELS, replace=False)) for _ in range(RANDOM_DRAWS)]
        gains.append(score(pool[[choice.row for choice in chosen]]) - np.mean(drawn))
    assert np.mean(gains) > 0.03
    assert min(gains) > -0.02


def test_gradients_are_those_of_autograd():
    random = np.random.default_rng(0)
    features = random.normal(size=(7, 3))
    standardized = torch.from_numpy((features - features.mean(0)) / features.std(0))
    weights = torch.from_numpy(random.normal(size=(4, 3))).requires_grad_()
    logits = standardized @ weights.T
    expected = []
    for row in logits:
        loss = torch.nn.functional.cross_entropy(row[None], row.argmax()[None])
        expected.append(torch.autograd.grad(loss, weights, retain_graph=True)[0].flatten().numpy())
    np.testing.assert_allclose(gradients(features, logits.detach().softmax(1).numpy()), expected, atol=1e-12)


def test_certain_but_unusual_images_are_at_most_every_fifth():
    random = np.random.default_rng(1)
    features, chances = random.normal(size=(100, 2)), random.dirichlet([1, 1, 1], 100)
    novelty = np.full(100, 0.5)
    chances[:10], novelty[:10] = [1, 0, 0], np.arange(2, 12)
    kinds = [choice.kind for choice in choose(features, chances, novelty, 20)]
    places = [place for place, kind in enumerate(kinds) if kind == "unusual"]
    assert places == [UNUSUAL * number - 1 for number in (1, 2, 3, 4)]
    assert {choice.row for choice in choose(features, chances, novelty, 20) if choice.kind == "unusual"} == {6, 7, 8, 9}
    assert all(choice.kind == "uncertain" for choice in choose(features, chances, novelty[10:].repeat(2)[:100], 20))


def test_without_a_classifier_every_cluster_is_represented():
    random = np.random.default_rng(2)
    clusters = np.repeat(np.arange(8), [200, 100, 50, 20, 10, 5, 5, 5])
    features = 20 * random.normal(size=(8, 4))[clusters] + random.normal(size=(len(clusters), 4))
    chosen = choose(features, None, None, 8)
    assert {int(clusters[choice.row]) for choice in chosen} == set(range(8))


def test_no_two_copies_are_chosen_and_fewer_are_chosen_if_only_copies_are_left():
    random = np.random.default_rng(3)
    kinds = np.repeat(np.arange(6), 10)
    features = random.normal(size=(6, 4))[kinds]
    chosen = choose(features, None, None, 50, lambda row, chosen: kinds[row] in kinds[chosen])
    assert sorted(kinds[[choice.row for choice in chosen]]) == list(range(6))
