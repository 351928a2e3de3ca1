"""A level trained by the engine goes through the same numbers as a loop written by hand in PyTorch."""

import pytest
import torch
from torch import nn

from multilevel import Callback, Engine, Graph, Problem
from multilevel.solvers import Unrolled

generator = torch.Generator().manual_seed(0)
X, Y = torch.randn(48, 5, generator=generator), torch.randn(48, 2, generator=generator)
BATCHES = list(zip(X.split(8), Y.split(8), strict=True))


class Regression(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        return nn.functional.mse_loss(getattr(levels, self.name)(x), y)


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def by_hand(net, optimizer, batches, scheduler=None, clip_norm=None, accumulate=1):
    for start in range(0, len(batches), accumulate):
        for x, y in batches[start : start + accumulate]:
            (nn.functional.mse_loss(net(x), y) / accumulate).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def assert_equal_state(net, expected, tolerance=0.0):
    for (name, value), other in zip(net.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=tolerance, atol=tolerance, msg=name)


def test_batch_norm_and_adamw():
    net, expected = network(), network()
    graph = Graph(Regression("fit", net, optimizer=torch.optim.AdamW(net.parameters(), 0.01), data=BATCHES))
    Engine(graph).run(6)
    by_hand(expected, torch.optim.AdamW(expected.parameters(), 0.01), BATCHES)
    assert_equal_state(net, expected)
    assert expected[1].num_batches_tracked == 6


def test_data_starts_again_when_it_ends():
    net, expected = network(), network()
    graph = Graph(Regression("fit", net, optimizer=torch.optim.SGD(net.parameters(), 0.01), data=BATCHES[:4]))
    Engine(graph).run(6)
    by_hand(expected, torch.optim.SGD(expected.parameters(), 0.01), BATCHES[:4] + BATCHES[:2])
    assert_equal_state(net, expected)


def test_frozen_parameters_stay_and_groups_keep_their_rates():
    net, expected = network(), network()
    optimizers = []
    for one in (net, expected):
        one[0].bias.requires_grad_(False)
        groups = [{"params": [one[0].weight], "lr": 0.1}, {"params": one[3].parameters(), "lr": 0.001}]
        optimizers.append(torch.optim.SGD(groups, momentum=0.9))
    graph = Graph(Regression("fit", net, optimizer=optimizers[0], data=BATCHES))
    assert set(graph.problems["fit"].variables()) == {"0.weight", "3.weight", "3.bias"}
    Engine(graph).run(6)
    by_hand(expected, optimizers[1], BATCHES)
    assert_equal_state(net, expected)
    assert torch.equal(net[1].weight, torch.ones(8))  # in no group: not trained


def test_scheduler_clipping_and_accumulation():
    net, expected = network(), network()
    parts = []
    for one in (net, expected):
        optimizer = torch.optim.SGD(one.parameters(), 0.5)
        parts.append((optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)))
    problem = Regression(
        "fit", net, optimizer=parts[0][0], data=BATCHES, scheduler=parts[0][1], clip_norm=0.1, accumulate=2
    )
    Engine(Graph(problem)).run(3)
    by_hand(expected, *parts[1][:1], BATCHES, scheduler=parts[1][1], clip_norm=0.1, accumulate=2)
    assert_equal_state(net, expected, tolerance=1e-7)
    assert parts[0][0].param_groups[0]["lr"] == 0.5 * 0.5**3


def test_a_parameter_that_the_loss_does_not_use_is_left_alone():
    net = network()
    net.unused = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5)
    Engine(Graph(Regression("fit", net, optimizer=optimizer, data=BATCHES))).run(2)
    assert torch.equal(net.unused, torch.ones(3))


class Trace(Callback):
    def __init__(self):
        self.updates, self.events = [], []

    def on_start(self, engine, steps):
        self.events.append(("start", steps))

    def on_update(self, engine, update):
        self.updates.append((update.level, update.step))

    def on_step(self, engine):
        self.events.append(("step", engine.step))

    def on_end(self, engine):
        self.events.append(("end", engine.step))


class Level(Problem):
    """Reads nothing but itself, counts its draws' batches, and reports a metric."""

    def loss(self, levels, batch, draws):
        assert batch is None
        return getattr(levels, self.name).weight.square().sum(), {"twice": 2.0}


def test_each_level_is_updated_by_the_schedule_of_steps():
    modules = [nn.Linear(1, 1) for _ in range(3)]
    graph = Graph(
        *(
            Level(name, module, optimizer=torch.optim.SGD(module.parameters(), 0.1), steps=steps)
            for name, module, steps in zip("abc", modules, (3, 2, 1), strict=True)
        )
    )
    trace = Trace()
    Engine(graph, callbacks=[trace]).run(2)
    step = [*"aaabaaabc"]
    assert trace.updates == [(level, number) for number in (0, 1) for level in step]
    assert trace.events == [("start", 2), ("step", 1), ("step", 2), ("end", 2)]


def test_metrics_and_losses_reach_callbacks():
    seen = []

    class Keep(Callback):
        def on_update(self, engine, update):
            seen.append(update)

    module = nn.Linear(1, 1)
    before = module.weight.square().sum().item()
    graph = Graph(Level("a", module, optimizer=torch.optim.SGD([module.weight], 0.1)))
    Engine(graph, callbacks=[Keep()]).run(1)
    assert seen[0].loss == pytest.approx(before)
    assert seen[0].metrics == {"twice": 2.0}
    assert seen[0].gradient_norm == pytest.approx(2 * before**0.5)


def test_only_what_is_differentiated_requires_a_gradient():
    """In a head's own update the features it reads have no graph; on the way to a top level they have."""
    seen = {}

    class Head(Problem):
        def loss(self, levels, batch, draws):
            features = levels.encoder(batch[0])
            with torch._C.DisableTorchFunction():  # asked by a loss, every activation has a graph
                seen.setdefault(self.name, []).append(features.requires_grad)
            return levels.head(features).square().mean()

    class Encoder(Regression):
        def loss(self, levels, batch, draws):
            value = super().loss(levels, batch, draws)
            return value + (levels.top.weight.square() * levels.encoder.weight).sum()

    class Top(Head):
        def loss(self, levels, batch, draws):
            features = levels.encoder(batch[0])
            with torch._C.DisableTorchFunction():  # asked by a loss, every activation has a graph
                seen.setdefault(self.name, []).append(features.requires_grad)
            return levels.head(features).mean()

    from multilevel.solvers import FiniteDifference

    encoder, head, top = nn.Linear(5, 2), nn.Linear(2, 2), nn.Linear(5, 2)

    def keywords(module):
        return {"optimizer": torch.optim.SGD(module.parameters(), 0.1), "data": BATCHES, "solver": FiniteDifference()}

    graph = Graph(
        Encoder("encoder", encoder, **keywords(encoder)),
        Head("head", head, **keywords(head)),
        Top("top", top, **keywords(top)),
    )
    engine = Engine(graph, check=False)
    seen.clear()
    engine.run(1)
    # head: its update (no graph), then two points of the mixed product in the encoder's parameters
    assert seen == {"head": [False, True, True], "top": [True]}


def test_a_level_that_starts_anew_does_so_before_each_update_of_the_next():
    class Anew(Regression):
        def begin(self):
            self.module.load_state_dict(start.state_dict())
            self.optimizer.state.clear()

    class Above(Problem):
        def loss(self, levels, batch, draws):
            return levels.above.bias.square().sum()

    net, start, above = nn.Linear(5, 2), nn.Linear(5, 2), nn.Linear(1, 1)
    below = Anew("fit", net, optimizer=torch.optim.Adam(net.parameters(), 0.1), data=BATCHES, steps=2)
    top = Above("above", above, optimizer=torch.optim.SGD(above.parameters(), 0.1))
    Engine(Graph(below, top)).run(3)
    expected = nn.Linear(5, 2)
    expected.load_state_dict(start.state_dict())
    by_hand(expected, torch.optim.Adam(expected.parameters(), 0.1), BATCHES[4:6])
    assert_equal_state(net, expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_unrolled_solver_does_not_go_back_beyond_a_new_start(steps):
    """low starts at 0 and takes one step of 0.1 towards top, which reads it: the derivative is 0.1, however often."""

    class Low(Problem):
        def begin(self):
            with torch.no_grad():
                self.module.weight.zero_()

        def loss(self, levels, batch, draws):
            return (levels.low.weight - levels.top.weight).square().sum() / 2

    class Mid(Problem):
        def loss(self, levels, batch, draws):
            return (levels.mid.weight - levels.low.weight).square().sum() / 2

    class Top(Problem):
        def loss(self, levels, batch, draws):
            return levels.low.weight.sum() + 0 * levels.mid.weight.sum()

    low, mid, top = (nn.Linear(1, 1, bias=False) for _ in range(3))
    rates = {"low": (Low, low, 0.1), "mid": (Mid, mid, 0.1), "top": (Top, top, 0.0)}
    problems = [
        kind(
            name,
            module,
            optimizer=torch.optim.SGD(module.parameters(), rate),
            steps=1 if name != "mid" else steps,
            solver=None if name == "top" else Unrolled(5),
        )
        for name, (kind, module, rate) in rates.items()
    ]
    engine = Engine(Graph(*problems))
    engine.run(1)
    assert engine.hypergradient("top")["weight"].item() == pytest.approx(0.1, rel=1e-6)


class Pull(Problem):
    """Half the squared distance from the batch's target to the level's module, times the rate of the level above."""

    def __init__(self, name, above=None, **keywords):
        module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(module.weight, 0.5)
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.5)
        super().__init__(name, module, optimizer=optimizer, **keywords)
        self.above = above

    def loss(self, levels, batch, draws):
        target = batch if self.above is None else batch * getattr(levels, self.above).weight
        below = getattr(levels, self.below).weight if self.below else 0
        return (getattr(levels, self.name).weight - target).square().sum() / 2 + (below - batch).square().sum() / 2


def held_engine():
    levels = []
    for below, name, above in ((None, "bottom", "top"), ("bottom", "middle", None), ("middle", "top", None)):
        targets = [torch.tensor(float(i), dtype=torch.float64) for i in range(5)]
        level = Pull(name, above, data=targets, steps=2, solver=Unrolled())
        level.below = below
        levels.append(level)
    return Engine(Graph(*levels))


def test_advance_trains_the_levels_below_and_holds_the_top_level():
    held, trained = held_engine(), held_engine()
    held.graph.problems["top"].optimizer.param_groups[0]["lr"] = 0.0
    trained.graph.problems["top"].optimizer.param_groups[0]["lr"] = 0.0
    held.advance(3)
    trained.run(3)
    for name in ("bottom", "middle", "top"):
        module = held.graph.problems[name].module
        assert_equal_state(module, trained.graph.problems[name].module)
    assert held.step == 0
    assert not held.graph.problems["top"].optimizer.state
    assert held.graph.batches["top"].position == trained.graph.batches["top"].position == 3
    assert torch.equal(held.hypergradient("top")["weight"], trained.hypergradient("top")["weight"])


def test_advance_calls_no_callbacks():
    engine, calls = held_engine(), []
    watch = Callback()
    watch.on_update = lambda *arguments: calls.append(arguments)
    engine.callbacks = [watch]
    engine.advance()
    assert not calls
    assert engine.callbacks == [watch]


def test_a_hypergradient_on_another_record_of_the_upper_level():
    engine = held_engine()
    engine.advance()
    record = engine.histories["top"].record
    other = engine.updates.next_record(engine.graph.problems["top"])
    assert engine.histories["top"].record is record
    one, both = (engine.solve_hypergradient("top", record=parts).values["weight"] for parts in (other, record + other))
    torch.testing.assert_close((one + engine.hypergradient("top")["weight"]) / 2, both, rtol=1e-14, atol=0)
