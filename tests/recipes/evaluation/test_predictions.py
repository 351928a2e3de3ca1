"""Predictions for thresholds: out of fold on training images, and as scored on the others."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from multilevel.recipes.evaluation import Candidate, EvaluationSettings, evaluate_features, grouped_folds, raw_pixels
from multilevel.recipes.evaluation.folds import FEW_FOLDS
from multilevel.recipes.evaluation.labels import draw_labels
from multilevel.recipes.evaluation.predictions import predict
from multilevel.recipes.evaluation.protocols import linear_probe
from multilevel.recipes.evaluation.protocols.knn import nearest_neighbours

SETTINGS = EvaluationSettings(protocols=["linear_probe", "knn"], max_images=150)


@pytest.mark.parametrize("protocol", ["linear_probe", "knn"])
def test_scored_images_are_predicted_as_they_are_scored(digits, setup, protocol):
    candidate = Candidate("raw", raw_pixels)
    predictions = predict(candidate, setup(), SETTINGS, SETTINGS.protocol(protocol), 1.0)
    score = next(one for one in evaluate_features([candidate], setup(), SETTINGS) if one.protocol == protocol)
    assert (predictions.scored.argmax(1) == predictions.labels).mean() == score.metrics["accuracy"]
    assert predictions.images == score.images == 150
    assert sorted(predictions.labels) == sorted(digits.test.labels.tolist())


def test_each_training_image_is_predicted_by_the_other_folds(digits, setup):
    settings = EvaluationSettings(labels=[60], max_images=None, neighbours=3)
    predictions = predict(Candidate("raw", raw_pixels), setup(), settings, settings.protocol("knn"), 60.0)
    assert predictions.images == len(predictions.fitted) == 60
    drawn = draw_labels(digits.train.labels, torch.arange(len(digits.train)), 60.0, settings.seed)
    labels, groups = digits.train.labels[drawn].numpy(), digits.train.groups[drawn].numpy()
    pixels = raw_pixels(digits.normalize(digits.train.pixels(drawn))).numpy()
    assert predictions.fitted_labels.tolist() == labels.tolist()
    for fit, held in grouped_folds(labels, groups, FEW_FOLDS, settings.seed):
        expected = nearest_neighbours(pixels[fit], labels[fit], pixels[held], 3, 10)
        np.testing.assert_allclose(predictions.fitted[held], expected, atol=1e-6)


def test_folds_have_the_strength_that_all_images_choose(digits, setup, monkeypatch):
    """Probes that chose their own would have probabilities of other scales; against scikit-learn, written out."""
    settings = EvaluationSettings(labels=[60], max_images=None)
    monkeypatch.setattr(linear_probe, "choose_strength", lambda _, labels, *rest: 1e-3 if len(labels) == 60 else 1e3)
    predictions = predict(Candidate("raw", raw_pixels), setup(), settings, settings.protocol("linear_probe"), 60.0)
    drawn = draw_labels(digits.train.labels, torch.arange(len(digits.train)), 60.0, settings.seed)
    labels, groups = digits.train.labels[drawn].numpy(), digits.train.groups[drawn].numpy()
    pixels = raw_pixels(digits.normalize(digits.train.pixels(drawn))).numpy()
    for fit, held in grouped_folds(labels, groups, FEW_FOLDS, settings.seed):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, tol=1e-6, max_iter=5000))
        expected = probe.fit(pixels[fit], labels[fit]).predict_proba(pixels[held])
        np.testing.assert_allclose(predictions.fitted[held], expected, atol=2e-3)
