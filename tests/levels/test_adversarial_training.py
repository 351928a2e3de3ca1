"""Three levels that read each other: the hypergradient is that of the whole solution, solved again."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, hessian

from multilevel import Engine, Graph
from multilevel.levels.adversarial_training import (
    Adversary,
    LinearClassifier,
    Perturbations,
    RobustClassification,
    RobustSelection,
)
from multilevel.levels.models.positive import Positive
from multilevel.solvers import ConjugateGradient, Dense

generator = torch.Generator().manual_seed(0)
X = torch.randn(10, 3, generator=generator, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
TRAINING, HELD_OUT = torch.arange(6), torch.arange(6, 10)
PENALTY, DECAY = 0.6, 0.2


def logits(w, x):
    return x @ w[:9].reshape(3, 3).T + w[9:]


def perturbed(w, iterations=40):
    """All perturbations: the fixed point of gradient / penalty, which contracts for a strongly concave problem."""
    slopes = grad(lambda some: F.cross_entropy(logits(w, X + some), Y, reduction="sum"))
    d = torch.zeros_like(X)
    for _ in range(iterations):
        d = slopes(d) / PENALTY
    return d


def trained(logarithm):
    """The classifier for a logarithm of its decay: Newton's method, the perturbations responding."""

    def total(w):
        loss = F.cross_entropy(logits(w, (X + perturbed(w))[TRAINING]), Y[TRAINING])
        return loss + logarithm.exp() / 2 * w[:9].square().sum()

    w = torch.zeros(12, dtype=torch.float64)
    for _ in range(30):
        step = torch.linalg.pinv(hessian(total)(w), rtol=1e-10) @ grad(total)(w)
        w = w - step
        if step.norm() < 1e-12:
            return w
    raise AssertionError("Newton's method has not converged")


def held_out_loss(logarithm):
    w = trained(logarithm)
    robust = F.cross_entropy(logits(w, (X + perturbed(w))[HELD_OUT]), Y[HELD_OUT])
    return F.cross_entropy(logits(w, X[HELD_OUT]), Y[HELD_OUT]) + robust


@pytest.fixture(scope="module")
def slope():
    """Central difference of the held-out loss in the logarithm of the decay."""
    logarithm = torch.tensor(DECAY, dtype=torch.float64).log()
    return ((held_out_loss(logarithm + 1e-4) - held_out_loss(logarithm - 1e-4)) / 2e-4).item()


@pytest.mark.parametrize("solver", [Dense(), ConjugateGradient(iterations=100, tolerance=1e-13)], ids=str)
def test_the_hypergradient_is_that_of_three_levels_solved_again(solver, slope):
    logarithm = torch.tensor(DECAY, dtype=torch.float64).log()
    w = trained(logarithm)
    assert (perturbed(w) - perturbed(w, 41)).abs().max() < 1e-11  # they have converged
    perturbations, classifier, decay = (
        one.double() for one in (Perturbations(X), LinearClassifier(3, 3), Positive(torch.tensor(1.0)))
    )
    with torch.no_grad():
        perturbations.values.copy_(perturbed(w))
        classifier.linear.weight.copy_(w[:9].reshape(3, 3))
        classifier.linear.bias.copy_(w[9:])
        decay.logarithms.copy_(logarithm)
    batch = {len(some): [(X[some], Y[some], some)] for some in (torch.arange(10), TRAINING, HELD_OUT)}
    graph = Graph(
        Adversary("adversary", perturbations, penalty=PENALTY, classifier="classify", data=batch[10], solver=solver),
        RobustClassification(
            "classify", classifier, adversary="adversary", decay="decay", data=batch[6], solver=solver
        ),
        RobustSelection("decay", decay, classifier="classify", adversary="adversary", data=batch[4]),
    )
    assert graph.passes("decay") == ("adversary", "classify")
    found = Engine(graph).hypergradient("decay")["logarithms"]
    assert found.item() == pytest.approx(slope, rel=1e-6)


def test_a_perturbation_of_the_distance_changes_the_answer_and_no_smaller_one_does():
    torch.manual_seed(0)
    classifier = LinearClassifier(3, 4).double()
    torch.nn.init.normal_(classifier.linear.weight)
    x = torch.randn(50, 3, dtype=torch.float64)
    classes = classifier(x).argmax(1)
    distances = classifier.distances(x, classes)
    assert (distances > 0).all()
    directions = F.normalize(torch.randn(20000, 3, dtype=torch.float64), dim=1)
    for one, distance, label in zip(x, distances, classes, strict=True):
        within = classifier(one + 0.999 * distance * directions).argmax(1)
        beyond = classifier(one + 1.05 * distance * directions).argmax(1)
        assert (within == label).all()
        assert (beyond != label).any()
    assert (classifier.distances(x, (classes + 1) % 4) <= 0).all()
