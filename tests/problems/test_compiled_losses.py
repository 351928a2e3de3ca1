"""What users compile, what losses do beside compiled calls, and that nothing is compiled anew after the second step."""

import copy
from collections import Counter

import pytest
import torch
import torch._dynamo.utils as dynamo_utils
from compiled_engines import Branching, Counting, Fit, Net, Penalized, Weigh, X, Y, assert_same, engine, state
from torch import nn
from torch.utils.checkpoint import checkpoint

from multilevel import Callback, Problem
from multilevel.solvers import Dense, FiniteDifference, Unrolled


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    dynamo_utils.counters.clear()


def compilations():
    """What dynamo has compiled so far, and why anew."""
    return dict(dynamo_utils.counters["stats"]), Counter(dynamo_utils.counters["recompiles"])


SOLVERS = {
    "default": lambda: None,
    "dense": lambda: Dense(damping=1),
    "finite_difference": FiniteDifference,
    "unrolled": lambda: Unrolled(steps=2),
}
WAYS = {
    "Engine(compile=...)": (Net, True),
    "torch.compile(module)": (lambda: torch.compile(Net(), backend="aot_eager"), False),
    "module.compile()": (lambda: in_place(Net()), False),
    "both": (lambda: torch.compile(Net(), backend="eager"), True),
    "both, in place": (lambda: in_place(Net()), True),
}


def in_place(module):
    module.compile(backend="aot_eager")
    return module


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_is_compiled_after_the_second_step(way, solver):
    net, compiles = WAYS[way]
    backend = Counting() if compiles else False
    compiled, plain = engine(backend, SOLVERS[solver](), net), engine(solver=SOLVERS[solver]())
    counted = []
    for _ in range(5):
        for made in (compiled, plain):
            made.run(1)
        state(compiled)
        counted.append(compilations())
    assert counted[1:] == counted[1:2] * 4
    assert bool(counted[0][0].get("unique_graphs")) == compiles
    if compiles:
        assert backend.graphs == counted[-1][0]["unique_graphs"] == 2  # fit and weigh
    for (key, value), expected in zip(state(compiled).items(), state(plain).values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize(("wrapped", "graphs"), [(True, 1), (False, 2)])
def test_a_part_that_a_user_has_compiled_is_part_of_a_compiled_call_or_a_line_says_that_nothing_is(wrapped, graphs):
    backend, of_user = Counting(), Counting()

    def net():
        part = nn.LayerNorm(6)
        if wrapped:  # torch.compile does not take its own wrapper whole
            return Net(torch.compile(part, backend=of_user))
        part.compile(backend=of_user)
        return Net(part)

    compiled = engine(backend, net=net)
    assert_same(compiled, engine(net=net), 1e-9, steps=2)
    assert (backend.graphs, of_user.graphs) == (graphs, 0)
    assert ["Net is not compiled" in line for line in compiled.notices] == [True] * wrapped


@pytest.mark.parametrize("way", ["torch.compile(module)", "module.compile()"])
def test_one_notice_a_run_says_that_a_module_that_a_user_has_compiled_runs_as_written(way):
    made = engine(net=WAYS[way][0])
    made.run(2)
    made.run(1)
    assert made.notices == [
        "level 'fit': compiled by torch.compile, but run as written, since solves need derivatives that compiled "
        "functions lack; compile=true or Engine(compile=True) compiles updates"
    ]
    untold = engine(net=WAYS[way][0])
    untold.callbacks.clear()
    with pytest.warns(UserWarning, match="compile=true") as warned:
        untold.run(2)
    assert len(warned) == 1
    assert not engine(Counting(), net=WAYS[way][0]).evaluator.notices
    assert not engine().evaluator.notices


class Decaying(Fit):
    """Weight decay of what requires gradients, of both levels."""

    def loss(self, levels, batch, draws):
        decay = sum(p.square().sum() for level in levels for p in levels[level].parameters() if p.requires_grad)
        return super().loss(levels, batch, draws) + 0.1 * decay


def test_a_weight_decay_loop_beside_compiled_calls_keeps_its_terms():
    def net():
        made = Net()
        made.last.bias.requires_grad_(False)
        return made

    backend = Counting()
    compiled = engine(backend, net=net, fit=Decaying)
    lower, upper = (copy.deepcopy(compiled.graph.problems[name].module) for name in ("fit", "weigh"))
    x, y = X.double(), Y.double()
    compiled.run(1)
    assert backend.calls > 0
    optimizer = torch.optim.Adam(lower.parameters(), 0.01)
    for _ in range(2):
        decay = sum(p.square().sum() for p in (*lower.parameters(), *upper.parameters()) if p.requires_grad)
        loss = (upper(x).sigmoid() * (lower(x) - y).square()).mean() + 0.1 * decay
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, value in lower.named_parameters():
        torch.testing.assert_close(compiled.graph.problems["fit"].module.get_parameter(key), value, rtol=0, atol=1e-12)


class Asking(Net):
    """Asks within a compiled call what requires gradients."""

    def forward(self, x):
        decay = sum(p.square().sum() for p in self.parameters() if p.requires_grad)
        return super().forward(x) + decay * torch.is_grad_enabled()


class FitApart(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        return (levels.weigh(x).detach().sigmoid() * (levels.fit(x) - y).square()).mean()


class WeighApart(Problem):
    def loss(self, levels, batch, draws):
        return (levels.weigh(batch[0]) - levels.fit(batch[0]).detach()).square().mean()


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_update(self, engine, update):
        self.values.append(update.loss)


def test_a_compiled_call_on_a_level_that_is_not_differentiated_computes_what_it_does_elsewhere():
    backend = Counting()
    compiled, plain = (engine(one, net=Asking, fit=FitApart, weigh=WeighApart) for one in (backend, False))
    for made in (compiled, plain):
        made.callbacks.append(Losses())
    # a hypergradient alone evaluates with the other level detached
    assert_same(compiled, plain, 1e-9, steps=2)
    losses = [made.callbacks[-1].values for made in (compiled, plain)]
    assert backend.calls > 0
    assert not compiled.notices
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


class Centering(Net):
    """Assigns a buffer anew, as DINO does, and moves one that has another name as well."""

    def __init__(self, *shape):
        super().__init__()
        self.to(torch.float64)
        self.register_buffer("center", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros(shape, dtype=torch.float64))
        self.layers.register_buffer("calls", self.calls)

    def forward(self, x):
        result = super().forward(x)
        self.center = 0.9 * self.center + 0.1 * result.detach().mean(0)
        self.calls += 1
        return result - self.center


@pytest.mark.parametrize(("shape", "compiles"), [((1,), True), ((), False)])
def test_a_buffer_that_a_forward_assigns_anew_or_writes_to_moves_as_in_plain_torch(shape, compiles):
    backend = Counting()
    compiled = engine(backend, net=lambda: Centering(*shape))
    lower, upper = (copy.deepcopy(compiled.graph.problems[name].module) for name in ("fit", "weigh"))
    optimizer = torch.optim.Adam(lower.parameters(), 0.01)
    x, y = X.double(), Y.double()
    for _ in range(2):
        optimizer.zero_grad()
        (upper(x).sigmoid() * (lower(x) - y).square()).mean().backward()
        optimizer.step()
    compiled.run(1)
    module = compiled.graph.problems["fit"].module
    assert backend.calls > 0
    assert ["loses in-place changes" in line for line in compiled.notices] == [True] * (not compiles)
    assert module.layers.calls is module.calls
    for key, value in lower.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=0, atol=1e-12)


class Repeated(Penalized):
    """Changes its batch, its generator's state and running statistics before it differentiates itself."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.generator = torch.Generator().manual_seed(3)

    def loss(self, levels, batch, draws):
        batch[0].mul_(1.1).add_(0.1 * torch.rand(batch[0].shape, generator=self.generator))
        return super().loss(levels, batch, draws) + levels.fit(batch[0]).mean()


def test_a_loss_that_is_evaluated_anew_starts_from_where_it_was():
    backend = Counting()
    compiled, plain = (engine(one, fit=Repeated, net=lambda: Net(nn.BatchNorm1d(6))) for one in (backend, False))
    assert_same(compiled, plain, 1e-9)
    assert len(compiled.notices) == 1


class Failing(Branching):
    """In evaluation mode, where autograd keeps running statistics."""

    def __init__(self):
        super().__init__(nn.BatchNorm1d(6))
        self.eval()


class FitTwice(Fit):
    def loss(self, levels, batch, draws):
        return levels.fit.features(batch[0]).square().mean() + super().loss(levels, batch, draws)


def test_a_call_that_fails_leaves_what_an_earlier_call_has_kept_for_its_gradient():
    backend = Counting()
    compiled = engine(backend, net=Failing, fit=FitTwice)
    assert_same(compiled, engine(net=Failing, fit=FitTwice), 1e-9)
    assert len(compiled.notices) == 1
    assert backend.calls > 0


class FitCheckpointed(Fit):
    def loss(self, levels, batch, draws):
        kept = checkpoint(levels.fit, batch[0], use_reentrant=False)
        return super().loss(levels, batch, draws) + kept.square().mean()


class Checkpointed(Net):
    def forward(self, x):
        return self.last(checkpoint(self.layers, x, use_reentrant=False))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["loss", "module"])
def test_checkpoints_compute_again_what_was_computed(way, where):
    net, compiles = WAYS[way]
    fit = Fit
    if where == "loss":
        fit = FitCheckpointed
    else:
        compiled_net = {"torch.compile(module)": torch.compile, "module.compile()": in_place}.get(way, lambda net: net)
        net = lambda: compiled_net(Checkpointed())  # noqa: E731
    compiled = engine(Counting() if compiles else False, net=net, fit=fit)
    plain = engine(fit=fit)
    for made in (compiled, plain):
        made.run(2)
    for (key, value), expected in zip(state(compiled).items(), state(plain).values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8, msg=lambda text, key=key: key + text)


class FitLater(Fit):
    """Reads the other level from the second batch on."""

    def loss(self, levels, batch, draws):
        x, y = batch
        if x[0, 0] == X[0, 0].double():
            return (levels.fit(x) - y).square().mean()
        return super().loss(levels, batch, draws)


class WeighDirectly(Weigh):
    def loss(self, levels, batch, draws):
        return super().loss(levels, batch, draws) + levels.weigh(batch[0]).square().mean()


def test_a_level_that_a_compiled_call_is_the_first_to_read_is_found():
    compiled, plain = (engine(backend, fit=FitLater, weigh=WeighDirectly, batch=12) for backend in (Counting(), False))
    assert compiled.graph.reads["fit"] == ()
    assert_same(compiled, plain, 1e-9, steps=2)
    assert compiled.graph.reads["fit"] == ("weigh",)


def test_a_function_that_a_user_has_compiled_runs_as_written():
    of_user = Counting()
    squared = torch.compile(torch.square, backend=of_user)

    class FitByFunction(Fit):
        def loss(self, levels, batch, draws):
            return super().loss(levels, batch, draws) + squared(levels.fit(batch[0])).mean()

    compiled, plain = (engine(backend, fit=FitByFunction) for backend in (Counting(), False))
    assert_same(compiled, plain, 1e-9)
    assert of_user.graphs == 0
