"""Lazy modules are initialized where the graph is made, and train as their counterparts of known shapes do."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from multilevel import Engine, Graph, Problem
from multilevel.problems import GraphError
from multilevel.solvers import Dense

generator = torch.Generator().manual_seed(0)
X, Y = (torch.randn(24, size, generator=generator) for size in (4, 2))
BATCHES = list(zip(X.split(6), Y.split(6), strict=True))


class Fit(Problem):
    def draw(self, levels, batch):
        return torch.randn_like(batch[0]) / 10

    def loss(self, levels, batch, draws):
        return mse_loss(levels.fit(batch[0] + draws), batch[1])


def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Dropout(0.5), nn.Tanh(), nn.LazyLinear(2))


def known():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))


def problem(module, name="fit", kind=Fit, data=BATCHES, **keywords):
    return kind(name, module, optimizer=torch.optim.AdamW(module.parameters(), 0.01), data=data, **keywords)


def test_a_lazy_module_trains_as_one_of_known_shapes():
    module, expected = lazy(), known()
    of_lazy = problem(module, data=iter(BATCHES))  # made before the shapes are known; an iterator gives no batch twice
    graph = Graph(of_lazy)
    assert [type(part) for part in module] == [type(part) for part in expected]
    expected.load_state_dict(module.state_dict())
    before = known().state_dict()
    for key in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(module.state_dict()[key], before[key])
    Engine(graph).run(4)
    Engine(Graph(problem(expected))).run(4)
    for key, value in expected.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    assert module[1].num_batches_tracked == 4


def test_initial_weights_are_those_of_a_first_call():
    module, expected = lazy(), lazy()
    torch.manual_seed(7)
    Graph(problem(module))
    torch.manual_seed(7)
    expected(X[:6])
    for one, other in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_buffers_of_levels_that_are_read_stay():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.register_buffer("centre", torch.zeros(4))

        def forward(self, x):
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
            return self.norm(x) - self.centre

    class Head(Problem):
        def loss(self, levels, batch, draws):
            return mse_loss(levels.head(levels.body(batch[0])), batch[1])

    body, head = Centred(), nn.LazyLinear(2)
    before = {key: value.clone() for key, value in body.state_dict().items()}
    Graph(problem(head, "head", Head), problem(body, "body", Head))
    assert head.weight.shape == (2, 4)
    for key, value in before.items():
        assert torch.equal(body.state_dict()[key], value), key


def test_an_upper_level_may_be_initialized_by_the_loss_below_it():
    """Weights of samples, which the upper loss does not call; the lower loss takes a gradient of its own."""

    class Weighted(Problem):
        def loss(self, levels, batch, draws):
            x = batch[0].clone().requires_grad_()
            errors = (levels.fit(x) - batch[1]).square().sum(1, keepdim=True)
            slope = torch.autograd.grad(errors.sum(), x, create_graph=True)[0]
            return (levels.weigh(x).sigmoid() * errors).mean() + 0.1 * slope.square().mean()

    class Plain(Problem):
        def loss(self, levels, batch, draws):
            return mse_loss(levels.fit(batch[0]), batch[1])

    found = []
    for weigh, fit in ((nn.LazyLinear(1), nn.LazyLinear(2)), (nn.Linear(4, 1), nn.Linear(4, 2))):
        modules = nn.ModuleList([weigh, fit])
        if found:
            modules.load_state_dict(found[0][0])
        lower = problem(fit, kind=Weighted, solver=Dense(damping=0.1))
        graph = Graph(lower, problem(weigh, "weigh", Plain))
        start = {key: value.clone() for key, value in modules.state_dict().items()}
        engine = Engine(graph)
        engine.run(2)
        found.append((start, engine.hypergradient("weigh")))
    for key, value in found[0][1].items():
        assert torch.equal(value, found[1][1][key])
        assert value.any()


def test_what_stays_uninitialized_is_named():
    class Broken(Problem):
        def loss(self, levels, batch, draws):
            raise ValueError("no\nshape")

    class Other(Problem):
        def loss(self, levels, batch, draws):
            return levels.fit[0](batch[0]).square().mean()

    text = r"level 'fit': no loss initializes its lazy parameter '1.weight'.*"
    with pytest.raises(GraphError, match=text):
        Graph(problem(nn.ModuleList([nn.LazyLinear(2), nn.LazyLinear(2)]), kind=Other))
    with pytest.raises(
        GraphError, match=r"parameter 'weight'.*the loss of 'fit' fails.*ValueError: no shape"
    ) as caught:
        Graph(problem(nn.LazyLinear(2), kind=Broken))
    assert "\n" not in str(caught.value)
