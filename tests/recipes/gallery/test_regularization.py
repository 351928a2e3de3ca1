"""Learned penalties beat searches of the same cost; their hypergradient is the derivative of the whole fit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from claims import above, below, claims, trained
from sklearn.linear_model import LogisticRegression

from multilevel import Engine, Graph
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.levels.classification import Classification
from multilevel.levels.models.positive import Positive
from multilevel.levels.penalized_classification import PenalizedClassification, fit_penalized
from multilevel.recipes.regularization import classifier_loss
from multilevel.solvers import ConjugateGradient

INPUTS, CLASSES = 4, 3


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, INPUTS, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    return inputs, (inputs[:, :CLASSES] + noise).argmax(1)


def test_fits_are_scikit_learns_on_inputs_scaled_by_the_penalties():
    (inputs, classes), penalties = samples(60, 0), torch.tensor([0.01, 0.1, 1.0, 0.03], dtype=torch.float64)
    found, _ = fit_penalized(inputs, classes, penalties.expand(CLASSES, INPUTS), tolerance=1e-9)
    scaled = (inputs / penalties.sqrt()).numpy()
    other = LogisticRegression(C=1 / len(classes), tol=1e-10, max_iter=10_000).fit(scaled, classes.numpy())
    expected = other.predict_proba(scaled)
    assert np.abs(found(inputs).softmax(1).detach().numpy() - expected).max() < 1e-6


def newtons_fit(inputs, classes, penalties):
    """The minimum to float64's precision: Newton's method with the dense Hessian."""

    def loss(values):
        weights, bias = values[:-CLASSES].view(CLASSES, INPUTS), values[-CLASSES:]
        return F.cross_entropy(inputs @ weights.T + bias, classes) + (penalties * weights**2).sum() / 2

    values = torch.zeros(CLASSES * INPUTS + CLASSES, dtype=torch.float64)
    for _ in range(20):
        hessian, gradient = torch.func.hessian(loss)(values), torch.func.grad(loss)(values)
        values = values - torch.linalg.pinv(hessian, hermitian=True) @ gradient  # equal biases change nothing
    assert torch.func.grad(loss)(values).abs().max() < 1e-14
    classifier = torch.nn.Linear(INPUTS, CLASSES, dtype=torch.float64)
    torch.nn.utils.vector_to_parameters(values, classifier.parameters())
    return classifier


def test_the_hypergradient_is_the_finite_difference_of_the_whole_fit():
    training, held_out = samples(60, 0), samples(80, 1)
    penalties = Positive(torch.full((CLASSES, INPUTS), 0.05)).double()
    solver = ConjugateGradient(iterations=50, tolerance=1e-12)
    fitted = newtons_fit(*training, penalties().detach())
    lower = PenalizedClassification("classify", fitted, penalties="regularize", data=[training], solver=solver)
    upper = Classification("regularize", penalties, classifier="classify", data=[held_out])
    found = Engine(Graph(lower, upper)).hypergradient("regularize")["logarithms"]
    for entry in [(0, 0), (1, 2), (2, 3), (2, 1)]:
        step = torch.zeros(CLASSES, INPUTS, dtype=torch.float64)
        step[entry] = 1e-4
        ends = [newtons_fit(*training, (penalties.logarithms.detach() + sign * step).exp()) for sign in (1, -1)]
        above, below = (classifier_loss(end, *held_out) for end in ends)
        assert found[entry].item() == pytest.approx((above - below) / 2e-4, rel=1e-6)


SHORT = ("recipe=regularization", "steps=60")
LEARNED = "learned, a penalty for each weight"
SEARCHES = ("grid search, one penalty", "random search, a penalty for each weight")


@claims(
    noise_penalty_over_pixels=above(3),
    held_out_loss_ratio=below(0.5),
    test_loss_ratio=below(0.85),
    gain_in_accuracy=above(0),
)
def penalties(seed):
    return measured(trained(*SHORT, seed=seed).findings())


def measured(findings):
    """Learned penalties against the better search."""
    learned, searches = findings[LEARNED], [findings[search] for search in SEARCHES]
    return {
        "noise_penalty_over_pixels": findings["mean_penalty"]["noise"] / findings["mean_penalty"]["pixels"],
        "held_out_loss_ratio": learned["held_out_loss"] / min(search["held_out_loss"] for search in searches),
        "test_loss_ratio": learned["test_loss"] / min(search["test_loss"] for search in searches),
        "gain_in_accuracy": learned["test_accuracy"] - max(search["test_accuracy"] for search in searches),
    }


def test_learned_penalties_beat_searches_of_the_same_cost():
    findings = trained(*SHORT, seed=0).findings()
    penalties.hold(measured(findings))
    for search in SEARCHES:
        assert findings[LEARNED]["gradients"] <= findings[search]["gradients"] < 1.3 * findings[LEARNED]["gradients"]


def test_the_cost_of_a_step_is_what_it_evaluates():
    recipe = build_recipe(compose_config(["recipe=regularization", "solver=identity"]))
    # 5 updates; 1151 held-out samples to 287; the gradient that one mixed product, for two gradients, goes through
    assert (len(recipe.training[1]), len(recipe.held_out[1])) == (287, 1151)
    assert recipe.gradients_per_step() == 5 + 5 + 1 + 2


def test_a_grid_halves_its_distance_again_and_again():
    recipe = build_recipe(compose_config(["recipe=regularization"]))
    grid = recipe._searches()["grid search, one penalty"]
    assert [next(grid)[0, 0].item() for _ in range(5)] == [0.0, 0.5, 0.25, 0.75, 0.125]
