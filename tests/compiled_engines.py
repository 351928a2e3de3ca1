"""Engines of two levels, compiled and not, with the same weights."""

import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend

from multilevel import Callback, Engine, Graph, Problem
from multilevel.solvers import FiniteDifference

generator = torch.Generator().manual_seed(0)

X = torch.randn(24, 4, generator=generator)
Y = torch.randn(24, 1, generator=generator)


class Net(nn.Module):
    """Features of a perceptron with ``extra`` between its layers, and a head."""

    def __init__(self, extra=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6) if extra is None else extra, nn.Tanh())
        self.last = nn.Linear(6, 1)

    def forward(self, x):
        return self.last(self.layers(x))

    def features(self, x):
        return self.layers(x)


class Fit(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        return (levels.weigh(x).sigmoid() * (levels.fit(x) - y).square()).mean()


class Weigh(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        return (levels.fit(x) - y).square().mean()


class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Penalized(Fit):
    """From its second evaluation on, which is the first update, the loss differentiates itself twice."""

    evaluations = 0

    def loss(self, levels, batch, draws):
        self.evaluations += 1
        x = (batch[0] + 0.1 * torch.rand_like(batch[0])).requires_grad_()
        slope = torch.autograd.grad(levels.fit(x).sum(), x, create_graph=self.evaluations > 1)[0]
        return super().loss(levels, batch, draws) + (slope**2).mean()


class FitDrawing(Fit):
    def draw(self, levels, batch):
        return levels.fit(batch[0])


class WeighByParts(Weigh):
    """The same, through a method and a submodule."""

    def loss(self, levels, batch, draws):
        x, y = batch
        return (levels.fit.last(levels.fit.features(x)) - y).square().mean()


class Counting:
    """A backend of torch.compile, fast to compile; counts the graphs it is given and the calls made with them."""

    def __init__(self, compiler="aot_eager"):
        self.compiler = lookup_backend(compiler) if isinstance(compiler, str) else compiler
        self.graphs = self.calls = 0

    def __call__(self, graph, inputs):
        function = self.compiler(graph, inputs)
        self.graphs += 1

        def counted(*arguments):
            self.calls += 1
            return function(*arguments)

        return counted


class Notices(Callback):
    def __init__(self):
        self.lines = []

    def on_notice(self, engine, notice):
        self.lines.append(notice)


def engine(backend=False, solver=None, net=None, dtype=torch.float64, fit=Fit, weigh=Weigh, batch=24):
    """An engine of two levels, its notices in ``notices``; the same weights each time."""
    torch.manual_seed(1)
    lower, upper = (net or Net)().to(dtype), nn.Linear(4, 1).to(dtype)
    x, y = X.to(dtype), Y.to(dtype)
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    graph = Graph(
        fit(
            "fit",
            lower,
            optimizer=torch.optim.Adam(lower.parameters(), 0.01),
            data=batches,
            steps=2,
            solver=solver or FiniteDifference(),
        ),
        weigh("weigh", upper, optimizer=torch.optim.Adam(upper.parameters(), 0.01), data=[(-x, y)]),
    )
    made = Engine(graph, seed=2, compile=backend, callbacks=[Notices()])
    made.notices = made.callbacks[0].lines
    return made


def state(of):
    """Every weight and buffer, and the hypergradient at that point."""
    held = {
        f"{name}.{key}": value.double()
        for name, problem in of.graph.problems.items()
        for key, value in problem.module.state_dict().items()
    }
    return {**held, **{key: value.double() for key, value in of.hypergradient("weigh").items()}}


def assert_same(compiled, plain, tolerance=1e-12, steps=1):
    for one in (compiled, plain):
        one.run(steps)
    found, expected = state(compiled), state(plain)
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, rtol=tolerance, atol=tolerance, msg=lambda text, key=key: key + text
        )
