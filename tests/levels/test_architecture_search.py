"""Cells: what an edge computes, what is chosen, and the hypergradient of DARTS."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from toy import relative_error

from multilevel import Engine, Graph
from multilevel.levels.architecture_search import (
    OPERATIONS,
    CellNetwork,
    MixedClassification,
    Mixture,
    chosen_cell,
    mixed_cell,
    random_cell,
)
from multilevel.solvers import Unrolled
from multilevel.solvers.vectors import flatten

RATE = 0.1


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(12, 1, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (12,), generator=generator)


def test_a_mixture_of_one_operation_is_that_operation():
    torch.manual_seed(0)
    cell = mixed_cell(2)
    network = CellNetwork(cell, 1, 4, 3).double()
    images, _ = data(0)
    names = ["conv", "skip", "max_pool"]
    only = F.one_hot(torch.tensor([OPERATIONS.index(one) for one in names]), len(OPERATIONS)).double()
    discrete = CellNetwork({edge: (name,) for edge, name in zip(cell, names, strict=True)}, 1, 4, 3).double()
    weights = network.state_dict()
    for edge, name in enumerate(names):
        weights |= {
            key.replace(f"operations.{edge}.{OPERATIONS.index(name)}.", f"operations.{edge}.0."): value
            for key, value in network.state_dict().items()
            if f"operations.{edge}.{OPERATIONS.index(name)}." in key
        }
    discrete.load_state_dict({key: weights[key] for key in discrete.state_dict()})
    torch.testing.assert_close(network(images, only), discrete(images), rtol=1e-12, atol=1e-12)
    nodes = [network.stem(images)]
    nodes.append(network.operations[0][OPERATIONS.index("conv")](nodes[0]))
    nodes.append(nodes[0] + F.batch_norm(F.max_pool2d(nodes[1], 3, 1, 1), None, None, training=True))
    expected = network.head(torch.cat(nodes[1:], 1).mean((2, 3)))
    torch.testing.assert_close(discrete(images), expected, rtol=1e-12, atol=1e-12)


def test_the_strongest_operations_are_kept_on_the_two_strongest_edges_into_a_node():
    cell = mixed_cell(3)
    assert list(cell) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    mixture = torch.zeros(6, len(OPERATIONS))
    mixture[:, 0] = 0.9  # none never wins
    for edge, (operation, strength) in enumerate([(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.1), (5, 0.5), (1, 0.4)]):
        mixture[edge, operation] = strength
    assert chosen_cell(mixture, cell) == {
        (0, 1): ("skip",),
        (0, 2): ("max_pool",),
        (1, 2): ("conv",),
        (1, 3): ("dilated_conv",),
        (2, 3): ("skip",),
    }


def test_random_cells_have_the_size_of_chosen_ones():
    generator = torch.Generator().manual_seed(0)
    cells = [random_cell(4, generator) for _ in range(300)]
    assert all(len(cell) == 7 and all(start < end for start, end in cell) for cell in cells)
    drawn = [one for cell in cells for (one,) in cell.values()]
    for name in OPERATIONS[1:]:
        assert drawn.count(name) / len(drawn) == pytest.approx(0.2, abs=0.03)


def test_unrolled_through_one_update_is_the_hypergradient_of_darts():
    """d/dalpha of the held-out loss at ``w - rate * d/dw training loss(w, alpha)`` (Liu et al. 2019, equation 6)."""
    torch.manual_seed(0)
    network, mixture = CellNetwork(mixed_cell(2), 1, 3, 3).double(), Mixture(3).double()
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    names = {"network": "weights", "mixture": "architecture"}
    sgd, still = torch.optim.SGD(network.parameters(), RATE), torch.optim.SGD(mixture.parameters(), 0.0)
    engine = Engine(
        Graph(
            MixedClassification("weights", network, data=[data(1)], optimizer=sgd, solver=Unrolled(), **names),
            MixedClassification("architecture", mixture, data=[data(2)], optimizer=still, **names),
        )
    )
    engine.run(1)
    for value in start.values():
        value.requires_grad_()

    def loss(weights, seed):
        images, labels = data(seed)
        return F.cross_entropy(functional_call(network, weights, (images, mixture())), labels)

    slopes = torch.autograd.grad(loss(start, 1), list(start.values()), create_graph=True)
    moved = {name: value - RATE * slope for (name, value), slope in zip(start.items(), slopes, strict=True)}
    expected = torch.autograd.grad(loss(moved, 2), mixture.logits)[0]
    assert relative_error(flatten(engine.hypergradient("architecture")), expected.flatten()) < 1e-9
