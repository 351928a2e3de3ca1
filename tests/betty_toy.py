"""A small bilevel program as written for Betty: a classifier, and a network that weighs its training samples."""

import torch
from betty.configs import Config
from betty.problems import ImplicitProblem
from torch import nn
from torch.nn import functional as F


class Classify(ImplicitProblem):
    def training_step(self, batch):
        x, y = batch
        weights = self.weigh(x).squeeze(1)
        penalty = sum(one.square().sum() for one in self.trainable_parameters())
        return (weights * F.cross_entropy(self(x), y, reduction="none")).mean() + 0.05 * penalty


class Weigh(ImplicitProblem):
    def forward(self, x):
        return self.module(x).sigmoid()

    def training_step(self, batch):
        x, y = batch
        scores = self.classify.module(x)
        return {"loss": F.cross_entropy(scores, y), "accuracy": (scores.argmax(1) == y).float().mean()}


def program(kind="darts", lower=Classify, net=None, optimizer=torch.optim.Adam, weigh_options=None, **options):
    """Problems and dependencies; ``options`` are of the lower level's Config."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.randint(3, (40,))
    net = net or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    weights = nn.Linear(4, 1)
    low = lower(
        "classify",
        Config(type=kind, **{"unroll_steps": 2, **options}),
        net,
        optimizer([one for one in net.parameters() if one.requires_grad], 0.01),
        train_data_loader=[(x[:10], y[:10]), (x[10:20], y[10:20])],
    )
    up = Weigh(
        "weigh",
        Config(retain_graph=True, **(weigh_options or {})),
        weights,
        torch.optim.Adam(weights.parameters(), 0.01),
        train_data_loader=[(x[20:], y[20:])],
    )
    return [low, up], {"u2l": {up: [low]}, "l2u": {low: [up]}}


def difference(problems, others):
    """Largest of all parameters and buffers."""
    pairs = [
        pair
        for one, other in zip(problems, others, strict=True)
        for pair in zip(one.module.state_dict().values(), other.module.state_dict().values(), strict=True)
    ]
    return max((one - other).abs().max().item() for one, other in pairs)
