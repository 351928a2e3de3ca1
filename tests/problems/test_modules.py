"""Every solver on modules: a frozen parameter, an unused one, one module read by two levels, nested batches."""

from collections import namedtuple

import pytest
import torch
from solver_table import ROWS
from torch import nn
from torch.func import functional_call
from toy import expected_of, flat, relative_error, trained

from multilevel import Graph, Problem

Pair = namedtuple("Pair", ["x", "y"])
generator = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


X, Y = randn(16, 3), randn(16, 2)
BATCHES = {
    "tuple": (X, Y),
    "dict": {"x": X, "y": Y},
    "named": Pair(X, Y),
    "nested": {"inputs": [X, {"scale": 1.0, "name": "x"}], "targets": (Y, None)},
}


def unpacked(batch):
    if isinstance(batch, Pair):
        return batch.x, batch.y
    if isinstance(batch, tuple):
        return batch
    if "x" in batch:
        return batch["x"], batch["y"]
    return batch["inputs"][0] * batch["inputs"][1]["scale"], batch["targets"][0]


RATE = 0.02


class Encoder(nn.Module):
    """Two layers, the bias of the first frozen, and a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)
        self.first.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.second(self.first(x).tanh())


def fit(encode, weigh, x, y, decay):
    return ((encode(x) - y).square() * weigh(x).sigmoid()).mean() + decay


def head(classify, encode, x, y, decay):
    return (classify(encode(x)) - y).square().mean() + decay


def above(classify, encode, x, y):
    return (classify(encode(x)) + y).cosh().mean() + encode(x).square().mean()


def penalty(parameters):
    """Makes every Hessian definite, without touching what is unused."""
    return sum(value.square().sum() for name, value in parameters if name != "unused") / 2


class Encode(Problem):
    def loss(self, levels, batch, draws):
        own = [
            (name, getattr(levels.encode, part).weight if name != "b" else levels.encode.second.bias)
            for name, part in (("first", "first"), ("second", "second"), ("b", "second"))
        ]
        return fit(levels.encode, levels.weigh, *unpacked(batch), penalty(own))


class Classify(Problem):
    def loss(self, levels, batch, draws):
        own = [("weight", levels.classify.weight), ("bias", levels.classify.bias)]
        return head(levels.classify, levels.encode, *unpacked(batch), penalty(own))


class Weigh(Problem):
    def loss(self, levels, batch, draws):
        return above(levels.classify, levels.encode, *unpacked(batch))


def graph_of(solver, batch):
    torch.manual_seed(0)
    modules = {"encode": Encoder(), "classify": nn.Linear(2, 2), "weigh": nn.Linear(3, 1)}
    kinds = {"encode": Encode, "classify": Classify, "weigh": Weigh}
    levels = []
    for name, module in modules.items():
        module.double()
        trained_ones = [one for one in module.parameters() if one.requires_grad]
        optimizer = torch.optim.Adam(trained_ones, RATE)
        steps = 1 if name == "weigh" else 2
        levels.append(kinds[name](name, module, optimizer=optimizer, data=[batch], solver=solver, steps=steps))
    return Graph(*levels), modules


def functions_of(modules):
    """The three losses as functions of each level's trained parameters in one vector, without the engine."""

    def call(name, vector):
        module, pieces, offset = modules[name], {}, 0
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                pieces[key] = vector[offset : offset + parameter.numel()].view(parameter.shape)
                offset += parameter.numel()
        frozen = {key: one.detach() for key, one in module.named_parameters() if key not in pieces}
        return lambda x: functional_call(module, {**pieces, **frozen}, (x,)), pieces

    def encode(v):
        encoder, pieces = call("encode", v["encode"])
        return fit(encoder, call("weigh", v["weigh"])[0], X, Y, penalty(pieces.items()))

    def classify(v):
        classifier, pieces = call("classify", v["classify"])
        return head(classifier, call("encode", v["encode"])[0], X, Y, penalty(pieces.items()))

    def weigh(v):
        return above(call("classify", v["classify"])[0], call("encode", v["encode"])[0], X, Y)

    return {"encode": encode, "classify": classify, "weigh": weigh}


#: The unused parameter makes the Hessian singular: solvers that need its inverse are given damping.
DAMPING = 0.5


@pytest.mark.parametrize("batch", list(BATCHES))
# auto takes dense without damping, for which this Hessian is singular
@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "auto"], ids=str)
def test_every_solver_on_modules(row, batch):
    damped = hasattr(row.solver(), "damping")
    solver = row.solver(damping=DAMPING) if damped else row.solver()
    graph, modules = graph_of(solver, BATCHES[batch])
    starts = {name: flat(problem.variables()).detach() for name, problem in graph.problems.items()}
    engine, values, pasts = trained(graph)
    found = flat(engine.hypergradient("weigh"))
    rows = {"classify": row, "encode": row}
    expected = expected_of(functions_of(modules), "weigh", starts, values, rows, pasts, RATE, DAMPING)
    assert relative_error(found, expected) < 10 * row.tolerance
    assert "first.bias" not in graph.problems["encode"].variables()
