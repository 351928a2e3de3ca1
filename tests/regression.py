"""A linear regression as a level, alone or with a learned ridge penalty above it, and both in plain PyTorch."""

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD

from multilevel import Graph, Problem
from multilevel.solvers import Dense

generator = torch.Generator().manual_seed(0)
X, Y = (torch.randn(24, size, generator=generator, dtype=torch.float64) for size in (4, 1))
BATCHES = list(zip(X.split(4), Y.split(4), strict=True))


class Level(Problem):
    """A level whose loss is a function of (levels, batch)."""

    def __init__(self, name, module, function, **keywords):
        super().__init__(name, module, **keywords)
        self.function = function

    def loss(self, levels, batch, draws):
        return self.function(levels, batch)


def linear():
    torch.manual_seed(1)
    return nn.Linear(4, 1).double()


def fit(levels, batch):
    return mse_loss(levels.fit(batch[0]), batch[1])


def single(module, function=fit, rate=0.1, momentum=0.9, data=BATCHES, **keywords):
    return Level("fit", module, function, optimizer=SGD(module.parameters(), rate, momentum), data=data, **keywords)


def loop(module, optimizer, updates, accumulate=1, clip_norm=None):
    """Plain PyTorch: one backward pass an update, of the mean loss."""
    for update in range(updates):
        batches = [BATCHES[(update * accumulate + part) % len(BATCHES)] for part in range(accumulate)]
        (sum(mse_loss(module(x), y) for x, y in batches) / accumulate).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()


def assert_equal(module, expected):
    for (name, value), other in zip(module.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-14, atol=1e-14, msg=name)


def ridge(levels, batch):
    return fit(levels, batch) + levels.penalty.exp() * levels.fit.weight.square().sum()


def bilevel(module, penalty, rate=0.1, **keywords):
    lower = single(module, ridge, solver=keywords.pop("solver", Dense()), data=[(X, Y)])
    upper = Level("penalty", penalty, fit, optimizer=SGD([penalty], rate), data=[BATCHES[0]], **keywords)
    return Graph(lower, upper)


def dense_hypergradient(module, penalty):
    """Of the upper loss, through the optimality of the lower level's: -c_u (H^-1 c) in plain autograd."""
    start = torch.cat([module.weight.detach().view(-1), module.bias.detach()])

    def lower(vector, log):
        return mse_loss(X @ vector[:4, None] + vector[4], Y) + log.exp() * vector[:4].square().sum()

    def upper(vector):
        return mse_loss(BATCHES[0][0] @ vector[:4, None] + vector[4], BATCHES[0][1])

    log = penalty.detach()
    hessian = torch.func.hessian(lower)(start, log)
    mixed = torch.func.jacfwd(torch.func.grad(lower), argnums=1)(start, log)
    return -mixed @ torch.linalg.solve(hessian, torch.func.grad(upper)(start))
