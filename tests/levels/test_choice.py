"""The choice channel: hypergradients through the distribution of the masks, against sums over all draws."""

import itertools
import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy import flat, relative_error

from multilevel import Engine, Graph, Problem
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.levels import MaskedPretrain
from multilevel.levels.masks import POLICIES, MaskView
from multilevel.levels.models.masked_language_model import PADDING, MaskedLanguageModel
from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.recorded_batch import RecordedBatch
from multilevel.problems.lower_levels import lower_level
from multilevel.solvers import Identity, SettingError
from multilevel.solvers.products import PRODUCTS

ORDERS = list(itertools.permutations(range(4), 2))  # all draws of 2 of 4 patches
MASKS = list(itertools.combinations(range(4), 2))
TOLERANCE = {"reverse": 1e-10, "forward": 1e-10, "finite_difference": 1e-5}
#: The numbers of guided images, equally probable, by batch size and guidance.
GUIDED = {(1, 1.0): [1], (2, 1.0): [2], (3, 1.0): [3], (1, 0.5): [0, 1], (2, 0.5): [1], (3, 0.5): [1, 2]}
generator = torch.Generator().manual_seed(0)
ROWS = torch.randn(3, 4, generator=generator, dtype=torch.float64)  # images of 4 patches of one pixel
LABELS = torch.zeros(3)  # not used
COTANGENT = torch.randn(4, 4, generator=generator, dtype=torch.float64)


class Autoencoder(nn.Module):
    """Predicts four pixels from the two visible ones."""

    patches, hidden_patches = 4, 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))

    def reconstruct(self, images, scores, gate=None):
        hidden = (scores.argsort(1).argsort(1) >= 2).double()
        return torch.tanh((images * (1 - hidden)) @ self.weight), hidden

    def patch_losses(self, images, prediction):
        return (prediction - images).square()


class Top(Problem):
    def loss(self, levels, batch, draws):
        return levels.pretrain.weight.sum()


def graph_of(gradient, guidance=1.0, weights="normalized", draws=1):
    torch.manual_seed(0)
    options = {"policy": POLICIES["sampled"](), "gradient": gradient, "guidance": guidance, "weights": weights}
    options["draws"] = draws
    pretrain = MaskedPretrain("pretrain", Autoencoder(), data=[(ROWS, LABELS)], solver=Identity(), **options)
    graph = Graph(pretrain, Top("mask", nn.Linear(4, 4, dtype=torch.float64)))
    assert graph.reads == {"pretrain": ("mask",), "mask": ("pretrain",)}
    return graph.problems


def draw_of(orders, guided):
    """A recorded draw: of each image the hidden patches in order, and whether it is guided."""
    scores = torch.zeros(len(orders), 4, dtype=torch.float64)
    for row, (first, second) in zip(scores, orders, strict=True):
        row[first], row[second] = 2.0, 1.0
    return {"scores": scores, "guided": torch.tensor(guided), "statistics": {}}


def lower_of(problems, images, draws):
    record = [RecordedBatch((images, LABELS[: len(images)]), draws, RandomState.capture())]
    return lower_level(Evaluator(problems), record, "pretrain", ("mask",))


def probability(logits, order):
    """Of drawing two patches in this order, without replacement."""
    weights, (first, second) = logits.sigmoid(), order
    return weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])


def loss_by_hand(matrix, image, logits, order, guided, weights):
    prediction = torch.tanh((image * torch.tensor([float(patch not in order) for patch in range(4)])) @ matrix)
    errors = (prediction - image).square()[list(order)]
    shares = logits.sigmoid()[list(order)] if guided else torch.ones(2, dtype=torch.float64)
    return (errors * shares).sum() / (shares.sum() if weights == "normalized" else 2)


def expectation(problems, images, guided, gradient, weights):
    """The derivative in the masking network of the expectation of <dg/dp, COTANGENT> over draws."""
    matrix, masking = problems["pretrain"].module.weight, problems["mask"].module
    total = 0.0
    for image, is_guided in zip(images, guided, strict=True):
        for order in ORDERS:
            logits = masking(image)
            chance = probability(logits, order) if is_guided else 1 / len(ORDERS)
            seen = logits.detach() if gradient == "choice" else logits
            loss = loss_by_hand(matrix, image, seen, order, is_guided, weights) / len(images)
            (slope,) = torch.autograd.grad(loss, matrix, create_graph=True)
            total = total + chance * (slope * COTANGENT).sum()
    return flat(dict(enumerate(torch.autograd.grad(total, masking.parameters(), materialize_grads=True))))


def summed(problems, images, guided, product):
    """The sum over all joint draws of probability times mixed product; of random masks, the order does not matter."""
    logits, total = problems["mask"].module(images).detach(), 0.0
    draws = [
        [(order, probability(row, order).item() if is_guided else 1 / 6) for order in (ORDERS if is_guided else MASKS)]
        for row, is_guided in zip(logits, guided, strict=True)
    ]
    for joint in itertools.product(*draws):
        orders, chances = zip(*joint, strict=True)
        lower = lower_of(problems, images, draw_of(orders, guided))
        total = total + math.prod(chances) * flat(PRODUCTS[product](lower).mixed({"weight": COTANGENT})["mask"])
    return total


CASES = [("choice", "normalized", count, guidance) for count, guidance in GUIDED]
CASES += [("weights+choice", "normalized", 2, 0.5), ("weights+choice", "raw", 2, 1.0), ("choice", "raw", 1, 1.0)]


@pytest.mark.parametrize("product", TOLERANCE)
@pytest.mark.parametrize(("gradient", "weights", "count", "guidance"), CASES)
def test_the_mean_over_all_draws_is_the_derivative_of_the_expectation(gradient, weights, count, guidance, product):
    problems, total, expected = graph_of(gradient, guidance, weights), 0.0, 0.0
    for number in GUIDED[count, guidance]:
        guided = [row < number for row in range(count)]
        total = total + summed(problems, ROWS[:count], guided, product)
        expected = expected + expectation(problems, ROWS[:count], guided, gradient, weights)
    assert expected.norm() > 0.01
    assert relative_error(total, expected) < TOLERANCE[product]


@pytest.mark.parametrize("product", TOLERANCE)
def test_two_masks_for_each_image_are_each_others_baseline(product):
    images = ROWS[[0, 0]]  # of a batch of two, the first is masked twice
    problems = graph_of("choice", draws=2)
    total, expected = (
        summed(problems, images, [True, True], product),
        expectation(problems, images, [True, True], "choice", "normalized"),
    )
    assert relative_error(total, expected) < TOLERANCE[product]
    batch = torch.stack([ROWS[0], ROWS[1]])
    draws = random_draw([True, True])
    slopes = [
        flat(PRODUCTS[product](lower_of(problems, rows, draws)).mixed({"weight": COTANGENT})["mask"])
        for rows in (images, batch)
    ]
    assert torch.equal(*slopes)


def random_draw(guided):
    numbers = torch.randint(len(ORDERS), (len(guided),), generator=torch.Generator().manual_seed(2))
    return draw_of([ORDERS[number] for number in numbers], guided)


@pytest.mark.parametrize("gradient", ["choice", "weights+choice"])
@pytest.mark.parametrize("weights", ["normalized", "raw"])
@pytest.mark.parametrize("product", ["reverse", "forward"])
def test_loss_own_gradient_and_curvature_are_those_without_the_channel(gradient, weights, product):
    direction, own, mixed = {"weight": COTANGENT}, [], []
    for name in ("weights", gradient):
        lower = lower_of(graph_of(name, weights=weights), ROWS, random_draw([True, True, False]))
        products = PRODUCTS[product](lower)
        loss = {"loss": lower.losses[0](lower.parameters, lower.reads)}
        parts = (loss, products.gradient(), products.hessian(direction), products.gauss_newton(direction))
        own.append(torch.cat([flat(part) for part in parts]))
        mixed.append(flat(products.mixed(direction)["mask"]))
    assert torch.equal(*own)
    assert relative_error(*mixed) > 0.1


class Attended(POLICIES["sampled"]):
    """Draws with probabilities that depend on the encoder too."""

    def log_probability(self, view, scores, hidden):
        changed = MaskView(view.images, 4, 2, lambda: view.logits + view.attention, lambda: view.attention)
        return super().log_probability(changed, scores, hidden)


def test_the_encoders_attention_is_a_constant_in_the_likelihood_of_a_draw(monkeypatch):
    monkeypatch.setattr(Autoencoder, "class_attention", lambda self, images: images @ self.weight, raising=False)
    gradients, mixed = [], []
    for policy in (POLICIES["sampled"], Attended):
        problems = graph_of("choice")
        problems["pretrain"].policy = policy()
        products = PRODUCTS["reverse"](lower_of(problems, ROWS, random_draw([True] * 3)))
        gradients.append(products.gradient()["weight"])
        mixed.append(flat(products.mixed({"weight": COTANGENT})["mask"]))
    assert torch.equal(*gradients)
    assert relative_error(*mixed) > 0.01


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "sampled"])
@pytest.mark.parametrize("gradient", ["choice", "weights+choice"])
def test_policies_without_a_likelihood_are_refused(policy, gradient):
    message = rf"mask\.gradient: got '{re.escape(gradient)}'; expected .* the likelihood of a draw: sampled$"
    with pytest.raises(SettingError, match=message):
        MaskedPretrain("pretrain", Autoencoder(), policy=POLICIES[policy](), gradient=gradient)


def plackett_luce(order, weights, count):
    """The probability of drawing the first ``count`` of ``order``, which lists all that can be drawn."""
    chance = 1.0
    for place in range(count):
        chance = chance * weights[order[place]] / weights[order[place:]].sum()
    return chance


def test_the_likelihood_of_a_draw_leaves_out_padding():
    words = torch.full((3, 6), PADDING)
    words[0], words[1, :4], words[2, :2] = 5, 6, 7
    torch.manual_seed(0)
    model = MaskedLanguageModel(words=20, length=6, width=8, depth=1, heads=2, mask_ratio=0.5)
    logits, scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True), torch.randn(3, 6)
    scores[:, 5] = -9.0  # below padding that scores lowest, nothing is left
    view = MaskView.of(SimpleNamespace(pretrain=model, mask=lambda words: logits), words)
    _, hidden = model.reconstruct(words, scores)
    orders = [row[:count].argsort(descending=True) for row, count in zip(scores, (6, 4, 2), strict=True)]
    chances = map(plackett_luce, orders, logits.sigmoid(), (3, 2, 1))
    likelihood = POLICIES["sampled"]().log_probability(view, scores, hidden > 0)
    expected = torch.stack(list(chances)).log()
    torch.testing.assert_close(likelihood, expected, rtol=1e-12, atol=0)
    slopes = [torch.autograd.grad(row.sum(), logits, create_graph=True)[0] for row in (likelihood, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-14)
    curvatures = [torch.autograd.grad(slope.square().sum(), logits)[0] for slope in slopes]
    torch.testing.assert_close(*curvatures, rtol=1e-10, atol=1e-14)


SIZES = ["model.width=16", "model.heads=2", "model.depth=1", "data.batch_size=8"]
GUIDED_MAE = [*SIZES, "model.decoder_depth=1", "data.limit=100"]
GUIDED_TEXT = [*SIZES, "recipe=guided_text"]


def hypergradient(*settings):
    return flat(Engine(build_recipe(compose_config(list(settings))).graph).hypergradient("mask"))


@pytest.mark.parametrize("recipe", [GUIDED_MAE, GUIDED_TEXT], ids=["guided_mae", "guided_text"])
@pytest.mark.parametrize(("solver", "tolerance"), [("identity", 1e-5), ("finite_difference", 1e-3)])
def test_recipes_learn_from_the_choice_as_well_as_the_weights(recipe, solver, tolerance):
    weights, choice, both = (
        hypergradient(*recipe, "mask.guidance=0.5", f"mask.gradient={gradient}", f"solver={solver}")
        for gradient in ("weights", "choice", "weights+choice")
    )
    assert choice.norm() > 0.1 * weights.norm()
    assert relative_error(both, weights + choice) < tolerance
