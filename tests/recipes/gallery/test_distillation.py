"""Classifiers learn more from learned images than from real ones, and the images' hypergradient is exact."""

import matplotlib.image
import pytest
import torch
import torch.nn.functional as F
from claims import above, claims, trained, untrained
from sklearn.linear_model import LogisticRegression

from multilevel import Engine, Graph
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.levels.classification import Classification
from multilevel.levels.distilled_classification import (
    Classifier,
    DistilledClassification,
    LearnedImages,
    fit_classifier,
)
from multilevel.solvers import ConjugateGradient, SettingError

CLASSES, PENALTY = torch.arange(3).repeat_interleave(2), 0.05


def images(count, seed):
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scikit_learns(learned):
    """The weights of its classifier of the learned images [classes, pixels + 1], the last one the (penalized) bias."""
    options = {"C": 1 / (len(CLASSES) * PENALTY), "solver": "newton-cg", "tol": 1e-13, "max_iter": 1000}
    fitted = LogisticRegression(fit_intercept=False, **options).fit(with_ones(learned).numpy(), CLASSES.numpy())
    return torch.tensor(fitted.coef_)


def with_ones(some):
    return F.pad(some.flatten(1), (0, 1), value=1.0)


def test_a_classifier_is_fitted_as_by_scikit_learn():
    classifier, learned = Classifier(4, 0, 3).double(), images(6, 0)
    fit_classifier(classifier, learned, CLASSES, PENALTY)
    found = torch.cat([classifier.network[1].weight, classifier.network[1].bias[:, None]], 1)
    assert (found - scikit_learns(learned)).abs().max() < 1e-4  # L-BFGS ends early


def test_the_images_hypergradient_is_the_finite_difference_of_scikit_learns_fit():
    learned, real, targets = images(6, 0), images(40, 1), torch.arange(40) % 3

    def real_loss(some):
        return F.cross_entropy(with_ones(real) @ scikit_learns(some).T, targets).item()

    classifier, fitted = Classifier(4, 0, 3).double(), scikit_learns(learned)
    values = torch.cat([fitted[:, :-1].reshape(-1), fitted[:, -1]])
    torch.nn.utils.vector_to_parameters(values, classifier.parameters())
    solver = ConjugateGradient(iterations=50, tolerance=1e-12)
    lower = DistilledClassification("classify", classifier, images="distill", penalty=PENALTY, solver=solver)
    upper = Classification("distill", LearnedImages(learned, CLASSES), classifier="classify", data=[(real, targets)])
    found = Engine(Graph(lower, upper)).hypergradient("distill")["images"]
    for entry in [(0, 0, 0, 0), (2, 0, 1, 0), (5, 0, 1, 1)]:
        step = torch.zeros_like(learned)
        step[entry] = 1e-4
        expected = (real_loss(learned + step) - real_loss(learned - step)) / 2e-4
        assert found[entry].item() == pytest.approx(expected, rel=1e-5)


SHORT = ("recipe=distillation", "steps=100")


@claims(gain_over_random_images=above(0.1), gain_over_noise=above(0.5), short_of_all_images=above(0))
def one_image_a_class(seed):
    return measured(trained(*SHORT, seed=seed), seed)


def measured(recipe, seed):
    """Differences of test accuracies: of the classifier, linear or with a hidden layer, for which they are smaller."""
    noise = untrained(*SHORT, seed=seed).findings()["test_accuracy"]["learned images"]
    scores = recipe.findings().values()
    return {
        "gain_over_random_images": min(one["learned images"] - one["random images"] for one in scores),
        "gain_over_noise": min(one["learned images"] for one in scores) - noise,
        "short_of_all_images": min(one["all images"] - one["learned images"] for one in scores),
    }


def test_one_learned_image_a_class_teaches_more_than_one_real_one(tmp_path):
    recipe = trained(*SHORT, seed=0)
    one_image_a_class.hold(measured(recipe, seed=0))
    assert matplotlib.image.imread(recipe.write_pictures(tmp_path)[0]).std() > 0.1


def test_random_images_are_real_ones_of_each_class():
    recipe = build_recipe(compose_config(["recipe=distillation", "images_per_class=2"]))
    some, classes = recipe._random_images(0)
    assert torch.equal(classes, recipe.classes)
    (real, labels) = recipe.real
    for image, one in zip(some, classes, strict=True):
        assert one in labels[(real == image).flatten(1).all(1)]


def test_more_of_a_class_than_there_are_is_refused():
    with pytest.raises(SettingError, match="images_per_class: got 1000; expected at most 1"):
        build_recipe(compose_config(["recipe=distillation", "images_per_class=1000"]))
