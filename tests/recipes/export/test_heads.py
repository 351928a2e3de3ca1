"""The head of an export: chosen on images that it was not fitted to, and deployed as it was chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.recipes.export.heads import HEADS, Heads, choose_head, linear_layer, score_on_test_images
from multilevel.recipes.export.operating_point import choose_operating_point
from multilevel.recipes.export.references import score_references

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=300", "steps=20", "evaluation.finetune.epochs=1",
    "evaluation.finetune.least_updates=10", "evaluation.finetune.batch_size=16",
]  # fmt: skip


def trained(*settings):
    recipe = build_recipe(compose_config([*TINY, *settings]))
    Engine(recipe.graph, seed=0).run(20)
    return recipe


@pytest.fixture(scope="module")
def recipe():
    return trained()


@pytest.mark.parametrize("classes", [(0, 1), (0, 1, 2, 3), (0, 2), (1, 2, 3)])
def test_a_probe_as_one_layer_has_its_probabilities(classes):
    random = np.random.default_rng(0)
    labels = random.choice(classes, 60)
    features = (random.normal(3, 2, (60, 5)) + labels[:, None]).astype(np.float32)
    probe = make_pipeline(StandardScaler(), LogisticRegression()).fit(features, labels)
    with torch.no_grad():
        probabilities = linear_layer(probe, 4)(torch.from_numpy(features)).double().softmax(1).numpy()
    np.testing.assert_allclose(probabilities[:, probe.classes_], probe.predict_proba(features), atol=1e-6)
    assert probabilities[:, np.setdiff1d(range(4), classes)].max(initial=0) == 0


def test_every_training_image_is_held_out_once_and_no_test_image_is_read(recipe, monkeypatch):
    data = recipe.data
    monkeypatch.setattr(type(data.test), "pixels", refusing(type(data.test).pixels))
    choice = choose_head(recipe)
    assert choice is not None
    assert set(choice.scores) == set(HEADS)
    assert choice.scores[choice.head] == max(choice.scores.values())
    assert choice.labels.tolist() == data.train.labels.tolist()
    assert choice.probabilities.shape == (len(data.train), 10)
    np.testing.assert_allclose(choice.probabilities.sum(1), 1, rtol=1e-6)
    accuracy = (choice.probabilities.argmax(1) == choice.labels).mean()  # digits are balanced
    assert choice.scores[choice.head] == pytest.approx(accuracy)
    assert choice.held_out == "3 folds of training images"


def refusing(pixels):
    def read(self, positions):
        assert self.name != "test"
        return pixels(self, positions)

    return read


def test_a_validation_part_is_held_out_where_there_is_one():
    recipe = trained("data.validation_share=0.2")
    choice = choose_head(recipe, "linear_probe")
    assert choice is not None
    assert choice.held_out == "validation images"
    assert choice.labels.tolist() == recipe.data.validation.labels.tolist()


def test_photographs_of_one_part_are_in_one_fold(recipe):
    images = recipe.data.train.images
    before = images.groups
    images.groups = torch.arange(len(images)) // 7
    try:
        heads = Heads(recipe, recipe.trained_model())
    finally:
        images.groups = before
    groups = (recipe.data.train.indices // 7).numpy()
    for fit, held in heads.folds:
        assert not set(groups[fit]) & set(groups[held])


def test_held_out_probes_have_the_strength_of_the_deployed_one(recipe):
    """Against scikit-learn, written out; probes that chose their own would have probabilities of other scales."""
    heads = Heads(recipe, recipe.trained_model())
    chosen = 3e-4  # not what a fold would choose
    heads._deployed_probe = make_pipeline(StandardScaler(), LogisticRegression(C=chosen))
    labels, probabilities = heads.comparable("linear_probe")
    for fit, held in heads.folds:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=chosen, max_iter=5000, tol=1e-6))
        probe.fit(heads.features[fit], heads.labels[fit])
        np.testing.assert_allclose(probabilities[held], probe.predict_proba(heads.features[held]), atol=2e-3)
        np.testing.assert_array_equal(labels[held], heads.labels[held])


def test_the_levels_own_head_is_compared_with_images_that_it_was_not_fitted_to(recipe):
    labels, probabilities = Heads(recipe, recipe.trained_model()).comparable("own")
    data, model = recipe.data, recipe.trained_model()
    assert sorted(labels.tolist()) == sorted(data.mask.labels.tolist())
    pixels = data.normalize(data.mask.pixels(torch.arange(len(data.mask))))
    with torch.no_grad():
        expected = model.classifier(model.autoencoder.encode(pixels)[:, 1:].mean(1)).double().softmax(1).numpy()
    order, other = np.lexsort(probabilities.T), np.lexsort(expected.T)
    np.testing.assert_allclose(probabilities[order], expected[other], atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_the_deployed_model_predicts_as_the_head_that_was_refitted(recipe, head):
    choice = choose_head(recipe, head)
    assert choice is not None
    model, own = choice.model, recipe.trained_model()
    assert (model.classifier is own.classifier) == (head == "own")
    assert (model.autoencoder is own.autoencoder) == (head != "finetune")
    scores = score_on_test_images(model, recipe)
    images = recipe.data.normalize(recipe.data.test.pixels(torch.arange(len(recipe.data.test))))
    with torch.no_grad():
        logits = model.classifier(model.autoencoder.encode(images)[:, 1:].mean(1))
    expected = (logits.argmax(1) == recipe.data.test.labels).double().mean()
    assert scores is not None
    assert scores["accuracy"] == pytest.approx(float(expected), abs=0.005)  # a rounding may move an image


def test_permuted_labels_are_predicted_by_chance():
    held_out, tested, stopped = [], [], []
    for seed in range(5):
        recipe = build_recipe(compose_config([*TINY, f"seed={seed}"]))
        labels = recipe.data.train.images.labels
        labels[:] = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
        choice = choose_head(recipe)
        assert choice is not None
        predicted = choice.probabilities.argmax(1)
        held_out.append(balanced_accuracy_score(choice.labels, predicted))
        scores = score_on_test_images(choice.model, recipe)
        assert scores is not None
        tested.append(scores["balanced_accuracy"])
        point = choose_operating_point(choice.probabilities, choice.labels, list("0123456789"), "0", "recall", 0.5)
        stopped.append(stopped_shares(choice, recipe.data, point))
    # five times 240 held-out and 359 test images of ten classes: standard errors of 0.9 and 0.7 points
    assert abs(np.mean(held_out) - 0.1) < 0.03
    assert abs(np.mean(tested) - 0.1) < 0.025
    # a threshold chosen on permuted labels stops as many of the zeros as of the others: standard error of 3.9 points
    recalls, false_alarms = zip(*stopped, strict=True)
    assert abs(np.mean(recalls) - np.mean(false_alarms)) < 0.12


def stopped_shares(choice, data, point):
    """The shares of the test images of all other classes and of class 0 whose probability reaches the threshold."""
    with torch.no_grad():
        tokens = choice.model.autoencoder.encode(data.normalize(data.test.pixels(torch.arange(len(data.test)))))
        probabilities = choice.model.classifier(tokens[:, 1:].mean(1)).double().softmax(1)
    stops = 1 - probabilities[:, 0] >= point.threshold
    other = data.test.labels != 0
    return float(stops[other].double().mean()), float(stops[~other].double().mean())


def test_references_are_fitted_to_all_labels_whatever_the_evaluation_of_the_run(recipe):
    expected = score_references(recipe, True, "accuracy", 0.5).scores
    assert set(expected) == {"untrained encoder", "raw pixels", "majority class"}
    before = recipe.settings.evaluation
    recipe.settings.evaluation = replace(before, labels=[0.1], labels_per_class=[2], references=False)
    try:
        assert score_references(recipe, True, "accuracy", 0.5).scores == expected
    finally:
        recipe.settings.evaluation = before
