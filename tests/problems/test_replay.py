"""Hypergradients replay randomness, and leave everything as it was."""

import copy
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from solver_table import ROWS
from torch import nn

from multilevel import Engine, Graph, Problem
from multilevel.levels import Finetune, MaskedAutoencoder, MaskedPretrain, MaskingNetwork, MaskLearning
from multilevel.levels.masks import POLICIES
from multilevel.levels.tasks import TaskData
from multilevel.levels.tasks.classification import ClassificationTask
from multilevel.solvers import FiniteDifference, Identity, SettingError

generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(24, 1, 8, 8, generator=generator)
LABELS = torch.randint(3, (24,), generator=generator)
BATCHES = list(zip(IMAGES.split(6), LABELS.split(6), strict=True))


TASK = ClassificationTask(TaskData(("a", "b", "c"), (8, 8, 8), image_size=8, patch_size=2))


class Fit(Problem):
    def draw(self, levels, batch):
        return torch.randn(1), random.random(), np.random.rand()

    def loss(self, levels, batch, draws):
        images, labels = batch
        losses = nn.functional.cross_entropy(levels.fit(images), labels, reduction="none")
        noise = draws[0].item() + draws[1] + draws[2] + random.random() + np.random.rand() + torch.rand(()).item()
        return (losses * levels.weigh(images).squeeze(1).sigmoid()).mean() * (2 + noise)


class Weigh(Problem):
    def loss(self, levels, batch, draws):
        images, labels = batch
        return nn.functional.cross_entropy(levels.fit(images), labels)


def dropout_graph(solver):
    torch.manual_seed(1)
    fit = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3)
    )
    weigh = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, 1))
    return Graph(
        Fit("fit", fit, optimizer=torch.optim.Adam(fit.parameters(), 0.01), data=BATCHES, solver=solver, steps=2),
        Weigh("weigh", weigh, optimizer=torch.optim.SGD(weigh.parameters(), 0.1, momentum=0.9), data=BATCHES),
    )


def masked_graph(solver, policy="topk"):
    torch.manual_seed(1)
    sizes = {"image_size": 8, "channels": 1, "patch_size": 2}
    mae = MaskedAutoencoder.of_size(
        **sizes, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.75
    )
    head, masking = nn.Sequential(nn.Dropout(0.2), TASK.new_head(16)), MaskingNetwork(**sizes, width=8)

    def keywords(module):
        optimizer = torch.optim.AdamW(module.parameters(), 0.01)
        return {"optimizer": optimizer, "data": BATCHES, "solver": copy.copy(solver)}

    return Graph(
        MaskedPretrain("pretrain", mae, policy=POLICIES[policy](), steps=2, **keywords(mae)),
        Finetune("finetune", head, task=TASK, **keywords(head)),
        MaskLearning("mask", masking, task=TASK, **keywords(masking)),
    )


def disturb(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


GRAPHS = {"dropout": dropout_graph, "topk": masked_graph, "sampled": lambda solver: masked_graph(solver, "sampled")}
every_graph = pytest.mark.parametrize("graph", list(GRAPHS))


@every_graph
@pytest.mark.parametrize("trained", [0, 2])
def test_the_hypergradient_is_bit_for_bit_the_same_whatever_generator_state_surrounds_it(graph, trained):
    engine = Engine(GRAPHS[graph](FiniteDifference()))
    engine.run(trained)
    found = []
    for seed in (0, 1, 2):
        disturb(seed)
        found.append(engine.hypergradient(engine.graph.top))
    assert all(torch.equal(found[0][key], other[key]) for other in found[1:] for key in found[0])
    assert any(value.any() for value in found[0].values())


@every_graph
def test_two_engines_agree_whatever_generator_state_surrounds_their_training(graph):
    states = []
    for seed in (0, 1):
        engine = Engine(GRAPHS[graph](FiniteDifference()), seed=5)
        for _ in range(2):
            disturb(seed)
            engine.run(1)
        states.append(engine.state_dict()["levels"])
    assert snapshot(states[0]) == snapshot(states[1])


def snapshot(value):
    """Nested state with tensors and arrays as bytes, to be compared bit for bit."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (value.dtype, value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: snapshot(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(one) for one in value]
    return value


def everything(engine):
    parameters = [p for problem in engine.graph.problems.values() for p in problem.module.parameters()]
    return snapshot(
        {
            "engine": engine.state_dict(),
            "gradients": [p.grad for p in parameters],
            "flags": [p.requires_grad for p in parameters],
            "training": [m.training for problem in engine.graph.problems.values() for m in problem.module.modules()],
            "generators": [torch.get_rng_state(), np.random.get_state()[1], random.getstate()[1]],
        }
    )


@every_graph
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_everything_is_bit_for_bit_unchanged_by_a_hypergradient(graph, row):
    few = {"terms": 3, "iterations": 3, "rank": 3, "steps": 2, "limit": 10}
    solver = row.solver(**{key: value for key, value in few.items() if key in row.solver().__dict__})
    engine = Engine(GRAPHS[graph](FiniteDifference()))
    engine.recorded_steps = 2
    engine.run(1)
    before = everything(engine)
    for name in engine.graph.names:
        # These two are for few parameters, and refuse: that leaves everything as it was as well.
        refuses = row.name in ("dense", "unrolled_forward") and name == engine.graph.top
        with pytest.raises(SettingError, match="limit") if refuses else nullcontext():
            engine.solve_hypergradient(name, dict.fromkeys(engine.graph.names, solver))
    assert everything(engine) == before


@every_graph
def test_hypergradients_between_steps_do_not_change_the_training(graph):
    states = []
    for asks in (False, True):
        engine = Engine(GRAPHS[graph](FiniteDifference()))
        for _ in range(2):
            if asks:  # before the first update as well: that batch is not consumed
                engine.hypergradient(engine.graph.top)
            engine.run(1)
        states.append(snapshot(engine.state_dict()))
    assert states[0] == states[1]


def test_every_update_draws_anew():
    """The draws of an engine are those of one generator seeded once, whatever the level."""
    engine = Engine(dropout_graph(FiniteDifference()), seed=7)
    seen = []
    for _ in range(3):
        engine.run(1)
        seen.append(engine.histories["fit"].record[0].draws)
    assert len({float(noise) for noise, _, _ in seen}) == 3
    assert len({number for _, number, _ in seen}) == 3
    again = Engine(dropout_graph(FiniteDifference()), seed=7)
    again.run(3)
    assert again.histories["fit"].record[0].draws[1:] == seen[2][1:]


class Weighted(Problem):
    def loss(self, levels, batch, draws):
        return nn.functional.cross_entropy(levels.fit(levels.weigh(batch[0])), batch[1])


@pytest.mark.parametrize("attention", [0.0, 0.3])
def test_every_product_sees_the_dropout_masks_of_the_update(attention):
    """Masks are drawn in the order of memory, which attention's kernels and torch.func change."""

    class Mean(nn.Module):
        def forward(self, tokens):
            return tokens.mean(1)

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.3, activation="gelu", batch_first=True)
    layer.self_attn.dropout = attention
    fit = nn.Sequential(nn.Unflatten(1, (4, 8)), layer, Mean(), nn.Linear(8, 3)).double()
    weigh = nn.Linear(16, 32).double()
    images = torch.randn(12, 16, dtype=torch.float64)
    data = [(images, torch.randint(3, (12,)))]
    levels = [Weighted(name, one, data=data, solver=Identity()) for name, one in (("fit", fit), ("weigh", weigh))]
    engine = Engine(Graph(*levels))
    found = {}
    for product in ("reverse", "forward", "finite_difference"):
        values = engine.solve_hypergradient("weigh", {"fit": Identity(product=product)}).values
        found[product] = torch.cat([value.flatten() for value in values.values()])
    direct = engine.solve_hypergradient("weigh", {"fit": Identity(scale=1e-30)}).values
    indirect = found["reverse"] - torch.cat([value.flatten() for value in direct.values()])
    for product, tolerance in (("forward", 1e-12), ("finite_difference", 1e-7)):
        assert (found[product] - found["reverse"]).norm() < tolerance * indirect.norm()
