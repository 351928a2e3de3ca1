"""A harmful auxiliary loss loses its share of the weights, along the right derivative."""

import pytest
import torch
import torch.nn.functional as F
from claims import below, claims, trained

from multilevel import Engine, Graph
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.levels.auxiliary_tasks import AUXILIARY_TASKS, AuxiliaryLearning, MultiTaskNetwork, rotated
from multilevel.levels.classification import Classification
from multilevel.levels.models.positive import Positive
from multilevel.solvers import SettingError, Unrolled

RATE = 0.1


def test_images_are_turned_as_often_as_asked():
    images = torch.arange(16.0).view(4, 1, 2, 2)
    found = rotated(images, torch.tensor([0, 1, 2, 3]))
    for turns in range(4):
        assert torch.equal(found[turns], torch.rot90(images[turns], turns, (1, 2)))


def test_the_weights_hypergradient_is_how_far_each_loss_moves_the_held_out_one():
    torch.manual_seed(0)
    network, weights = MultiTaskNetwork((1, 3, 3), 6, 4), Positive(torch.ones(len(AUXILIARY_TASKS)))
    weights.logarithms.data = torch.tensor([0.5, -0.3, 0.1])
    network, weights = network.double(), weights.double()
    images, labelled = torch.randn(8, 1, 3, 3).double(), torch.randn(8, 1, 3, 3).double()
    batch = images, torch.randint(4, (8,)), labelled, torch.randint(4, (8,))
    held_out = torch.randn(10, 1, 3, 3).double(), torch.randint(4, (10,))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizers = torch.optim.SGD(network.parameters(), RATE), torch.optim.SGD(weights.parameters(), 1e-12)
    lower = AuxiliaryLearning(
        "learn", network, weights="weigh", data=[batch], optimizer=optimizers[0], solver=Unrolled()
    )
    upper = Classification("weigh", weights, classifier="learn", data=[held_out], optimizer=optimizers[1])
    engine = Engine(Graph(lower, upper))
    engine.run(1)
    found = engine.hypergradient("weigh")["logarithms"]
    draws = engine.records()["records"]["learn"][0].draws

    def gradient(parameters, loss):
        values = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        slopes = torch.autograd.grad(loss(values), list(values.values()), materialize_grads=True)
        return torch.cat([slope.flatten() for slope in slopes])

    def head(name, inputs):
        def output(values):
            hidden = F.gelu(F.linear(inputs.flatten(1), values["trunk.1.weight"], values["trunk.1.bias"]))
            hidden = F.gelu(F.linear(hidden, values["trunk.3.weight"], values["trunk.3.bias"]))
            return F.linear(hidden, values[f"heads.{name}.weight"], values[f"heads.{name}.bias"])

        return output

    turned = torch.stack([torch.rot90(one, int(k), (1, 2)) for one, k in zip(images, draws["turns"], strict=True)])
    visible, hidden = images * ~draws["hidden"], draws["hidden"].flatten(1)
    losses = [
        lambda values: F.cross_entropy(head("rotation", turned)(values), draws["turns"]),
        lambda values: (head("hidden_pixels", visible)(values) - images.flatten(1))[hidden].square().mean(),
        lambda values: F.cross_entropy(head("random_labels", images)(values), batch[1]),
    ]
    after = dict(network.named_parameters())
    slope = gradient(after, lambda values: F.cross_entropy(head("main", held_out[0])(values), held_out[1]))
    moves = torch.stack([gradient(before, loss) for loss in losses])
    expected = -RATE * weights().detach() * (moves @ slope)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-9)


@claims(share_of_random_labels=below(1 / 3))
def weighting(seed):
    recipe = trained("recipe=meta_loss_weighting", "steps=100", "evaluate=false", seed=seed)
    weights = recipe.findings()["weights"]
    return {"share_of_random_labels": weights["random_labels"] / sum(weights.values())}  # a third at first


def test_random_labels_lose_their_share_of_the_weights():
    weighting.check()


def test_a_class_has_as_many_labels_as_asked():
    recipe = build_recipe(compose_config(["recipe=meta_loss_weighting", "labels_per_class=3"]))
    assert torch.bincount(recipe.labelled[1]).tolist() == [3] * 10


def test_more_of_a_class_than_there_are_is_refused():
    with pytest.raises(SettingError, match="labels_per_class: got 1000; expected at most 1"):
        build_recipe(compose_config(["recipe=meta_loss_weighting", "labels_per_class=1000"]))
