"""Two levels, one of which shifts the targets of the other at random, and their hypergradient by hand."""

import torch
from torch import nn
from torch.nn.functional import logsigmoid
from toy import flat

from multilevel import Graph, Problem, score_function

ROWS = 8
generator = torch.Generator().manual_seed(0)
BATCH = tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((ROWS, 2), (ROWS,), (ROWS,)))


class Fit(Problem):
    def draw(self, levels, batch):
        return batch[2] > 0  # given, so that ranks draw alike

    def outputs(self, levels, batch, draws):
        return levels.fit(batch[0])[:, 0]

    def criterion(self, outputs, levels, batch, draws):
        chances = levels.shift(batch[0])[:, 0]
        log_probabilities = torch.where(draws, logsigmoid(chances), logsigmoid(-chances))
        return score_function((outputs - batch[1] - draws.double()).square(), log_probabilities).mean()


class Shift(Problem):
    def loss(self, levels, batch, draws):
        return (levels.fit(batch[0])[:, 0] - batch[1]).square().mean()


def graph_of(solver):
    torch.manual_seed(0)
    fit, shift = (nn.Linear(2, 1, dtype=torch.float64) for _ in range(2))
    return Graph(Fit("fit", fit, data=[BATCH], solver=solver), Shift("shift", shift, data=[BATCH]))


def hypergradient_by_hand(parts, exact):
    """Without the framework, on parts of the batch with a baseline each: the mean over them.

    The derivative of each example's log-probability, times its <dl/dp, x> minus the mean of the other examples'.
    """
    fit, shift = (graph_of(None).problems[name].module for name in ("fit", "shift"))
    inputs, targets, numbers = BATCH
    rows = torch.cat([inputs, torch.ones(ROWS, 1, dtype=torch.float64)], 1)  # p is the weight and the bias
    errors = (fit(inputs)[:, 0] - targets).detach()
    solution = 2 * rows.T @ errors / ROWS
    if exact:
        solution = torch.linalg.solve(2 * rows.T @ rows / ROWS, solution)
    total = 0.0
    for part in torch.arange(ROWS).chunk(parts):
        products = 2 * (errors - (numbers > 0).double())[part] * (rows[part] @ solution)
        chances = shift(inputs[part])[:, 0].sigmoid()
        logarithms = torch.where(numbers[part] > 0, chances, 1 - chances).log()
        baseline = (products.sum() - products) / max(1, len(part) - 1)
        total = total - ((products - baseline) * logarithms).mean() / parts
    return flat(dict(enumerate(torch.autograd.grad(total, shift.parameters()))))
