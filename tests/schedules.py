"""Three levels to compare with autograd through the whole schedule: quadratics trained with SGD, and levels with
batches, draws and AdamW."""

import torch
from torch import nn
from toy import Function, toy_graph

from multilevel import Engine, Graph, Problem
from multilevel.solvers import Unrolled

DOUBLE = {"dtype": torch.float64}
generator = torch.Generator().manual_seed(3)
A, B, C, D = (torch.randn(4, 4, generator=generator, **DOUBLE) / 2 for _ in range(4))
P_CURVE, Q_CURVE = torch.linspace(0.5, 2, 4, **DOUBLE), torch.linspace(1, 3, 4, **DOUBLE)
RATE = 0.05

#: p reads u; q reads p and u; u reads q and p: both paths and the direct one count.
QUADRATIC = {
    "p": lambda v: (P_CURVE * v["p"] ** 2).sum() / 2 - v["p"] @ (A @ v["u"]),
    "q": lambda v: (Q_CURVE * v["q"] ** 2).sum() / 2 - v["q"] @ (B @ v["p"] + C @ v["u"]),
    "u": lambda v: (v["q"] - 1).square().sum() + v["q"] @ D @ v["p"] + v["u"].square().sum() / 2,
}
VALUES = {name: torch.randn(4, generator=generator, **DOUBLE) for name in QUADRATIC}


def with_sgd(graph, rate=RATE, momentum=0.0, top=0.3):
    for name, problem in graph.problems.items():
        rates = top if name == graph.top else rate
        problem.optimizer = torch.optim.SGD(problem.module.parameters(), rates, momentum=momentum)
    return graph


def engine_of(solver, steps, functions=QUADRATIC, momentum=0.0):
    solvers = {name: solver() for name in list(functions)[:-1]}
    return Engine(with_sgd(toy_graph(functions, VALUES, solvers, rate=RATE, steps=steps), momentum=momentum))


class Schedule:
    """The schedule of ``toy_graph`` with SGD in plain PyTorch, from the levels' first values on."""

    def __init__(self, steps, functions=QUADRATIC, momentum=0.0):
        self.functions, self.steps, self.momentum = functions, steps, momentum
        self.names = list(functions)[:-1]
        self.values = {name: value.clone().requires_grad_() for name, value in VALUES.items()}
        self.speeds = dict.fromkeys(self.names, torch.zeros(4, **DOUBLE))

    def run(self, outer_steps, upper):
        """Train the levels below with the values ``upper`` of the top level, a row for each outer step."""
        for row in range(outer_steps):
            self.values["u"] = upper[row]
            self._descend(len(self.names) - 1)

    def _descend(self, index):
        for _ in range(self.steps if index >= 0 else 0):
            self._descend(index - 1)
            name = self.names[index]
            leaf = self.values[name]
            slope = torch.autograd.grad(self.functions[name](self.values), leaf, create_graph=True)[0]
            self.speeds[name] = self.momentum * self.speeds[name] + slope
            self.values[name] = leaf - RATE * self.speeds[name]

    def detach(self):
        self.values = {name: value.detach().requires_grad_() for name, value in self.values.items()}
        self.speeds = {name: value.detach() for name, value in self.speeds.items()}


class Halves(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.first, self.second = nn.Parameter(value[:2].clone()), nn.Parameter(value[2:].clone())

    @property
    def value(self):
        return torch.cat([self.first, self.second])


TARGETS = [{"x": torch.randn(4, generator=generator, **DOUBLE)} for _ in range(7)]


class Batched(Problem):
    """Half the squared distance to the batch's target, moved by noise that is drawn."""

    def __init__(self, name, above, **keywords):
        module = Halves(VALUES["p"])
        optimizer = torch.optim.AdamW(module.parameters(), 0.01)
        super().__init__(name, module, optimizer=optimizer, data=TARGETS, **keywords)
        self.above = above

    def draw(self, levels, batch):
        return {"noise": torch.randn(4, **DOUBLE)}

    def loss(self, levels, batch, draws):
        target = batch["x"] + draws["noise"] + getattr(levels, self.above).value
        return (getattr(levels, self.name).value - target).square().sum() / 2


def batched_engine(**keywords):
    solvers = [Unrolled(outer_steps=4) for _ in range(2)]
    lower, middle = Batched("p", "u", solver=solvers[0], steps=2), Batched("q", "p", solver=solvers[1])
    upper = Function("u", VALUES["u"], lambda v: (v["q"] - 1).square().sum(), ("q", "u"), rate=0.1)
    return Engine(Graph(lower, middle, upper), **keywords)
