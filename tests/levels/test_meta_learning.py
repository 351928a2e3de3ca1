"""The meta-gradient is that of MAML through recorded updates, and that of iMAML at the adapted parameters."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from toy import relative_error

from multilevel import Engine, Graph
from multilevel.levels.meta_learning import Adaptation, MetaLearning, SharedNetwork, TaskOffsets, Tasks
from multilevel.solvers import ConjugateGradient, Identity, Unrolled
from multilevel.solvers.vectors import flatten

COUNT, RATE, PROXIMAL = 3, 0.1, 0.7


def tasks(number):
    generator = torch.Generator().manual_seed(number)
    sizes = [(COUNT, 6, 2), (COUNT, 6, 1), (COUNT, 4, 2), (COUNT, 4, 1)]
    return Tasks(*(torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes))


def build(network, solver, steps=1, proximal=0.0, kind=torch.optim.SGD):
    shared = SharedNetwork(network.double())
    offsets = TaskOffsets(shared.no_offsets(COUNT))
    optimizer, still = kind(offsets.parameters(), RATE), torch.optim.SGD(shared.parameters(), 0.0)
    common = {"tasks": tasks, "error": F.mse_loss}
    lower = Adaptation(
        "adapt", offsets, **common, proximal=proximal, shared="meta", optimizer=optimizer, steps=steps, solver=solver
    )
    return Engine(Graph(lower, MetaLearning("meta", shared, **common, adaptation="adapt", optimizer=still)))


def adapted_by_hand(network, start, inputs, targets, steps):
    for _ in range(steps):
        loss = F.mse_loss(functional_call(network, start, (inputs,)), targets)
        slopes = torch.autograd.grad(loss, list(start.values()), create_graph=True)
        start = {name: one - RATE * slope for (name, one), slope in zip(start.items(), slopes, strict=True)}
    return start


@pytest.mark.parametrize("rounds", [1, 2])
def test_unrolled_updates_give_the_gradient_of_maml(rounds):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    engine = build(network, Unrolled(steps=3), steps=3)
    engine.run(rounds)  # every round starts anew, from other tasks
    found = engine.hypergradient("meta")
    losses = []
    for support_x, support_y, query_x, query_y in zip(*tasks(rounds), strict=True):
        moved = adapted_by_hand(network, dict(network.named_parameters()), support_x, support_y, 3)
        losses.append(F.mse_loss(functional_call(network, moved, (query_x,)), query_y))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(network.parameters()))
    assert relative_error(flatten(found), torch.cat([one.reshape(-1) for one in expected])) < 1e-10


def test_conjugate_gradients_give_the_gradient_of_imaml():
    torch.manual_seed(0)
    network = nn.Linear(2, 1, bias=False)
    engine = build(network, ConjugateGradient(iterations=20, tolerance=1e-14), proximal=PROXIMAL)
    support_x, support_y, query_x, query_y = tasks(0)
    shared = network.weight.detach().clone().requires_grad_()
    # the minimum of |x w - y|^2 / S + PROXIMAL / 2 |w - shared|^2, for every task
    gram, moment = support_x.mT @ support_x * 2 / 6, support_x.mT @ support_y * 2 / 6
    best = torch.linalg.solve(gram + PROXIMAL * torch.eye(2).double(), moment + PROXIMAL * shared.mT)
    expected = torch.autograd.grad(F.mse_loss(query_x @ best, query_y), shared)[0]
    with torch.no_grad():
        engine.graph.problems["adapt"].module.offsets[0].copy_(best.mT - shared)
    assert relative_error(engine.hypergradient("meta")["network.weight"], expected) < 1e-10


def test_every_round_begins_with_a_new_optimizer():
    torch.manual_seed(0)
    network = nn.Linear(2, 1).double()
    engine = build(network, Identity(), steps=4, kind=torch.optim.Adam)
    engine.run(3)
    found = engine.graph.problems["adapt"].module()
    support_x, support_y, *_ = tasks(3)
    for task in range(COUNT):
        moved = copy.deepcopy(network)
        adam = torch.optim.Adam(moved.parameters(), RATE)
        for _ in range(4):
            adam.zero_grad()
            F.mse_loss(moved(support_x[task]), support_y[task]).backward()
            adam.step()
        for offset, begun, parameter in zip(found, network.parameters(), moved.parameters(), strict=True):
            torch.testing.assert_close(offset[task], parameter - begun, rtol=1e-6, atol=1e-9)
