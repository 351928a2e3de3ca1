"""Graphs on Betty's engine: what it computes is what is computed here, where Betty is right."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from multilevel import Callback, Engine, Graph, Problem
from multilevel.betty.solvers import BETTY_COMMAND
from multilevel.solvers import ConjugateGradient, Dense, FiniteDifference, Identity, Neumann, SettingError

pytest.importorskip("betty", reason=BETTY_COMMAND)

from betty_toy import difference
from toy import flat, relative_error, toy_graph

from multilevel import betty as bridge

CLOSE = 1e-5


class Fit(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        noise = draws * 0.1
        return (
            levels.weigh(x).squeeze(1).sigmoid() * F.cross_entropy(levels.fit(x + noise), y, reduction="none")
        ).mean()

    def draw(self, levels, batch):
        return torch.randn_like(batch[0])


class Weights(Problem):
    def loss(self, levels, batch, draws):
        scores = levels.fit(batch[0])
        return F.cross_entropy(scores, batch[1]), {"accuracy": (scores.argmax(1) == batch[1]).float().mean()}


def network_graph(solver=None, kind=torch.optim.Adam, fit_kind=Fit, **fit):
    """Two levels with noise, dropout, batch norm, two groups of parameters, a schedule and clipping."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.randint(3, (40,))
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, 3))
    weigh = nn.Linear(4, 1)
    groups = [
        {"params": [one for one in net.parameters() if one.ndim > 1], "weight_decay": 0.1},
        {"params": [one for one in net.parameters() if one.ndim == 1], "lr": 0.002},
    ]
    adam = kind(groups, 0.01)
    fit = {
        "optimizer": adam,
        "scheduler": torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.9**step),
        "clip_norm": 0.1,
        "steps": 2,
        **fit,
    }
    return Graph(
        fit_kind("fit", net, data=[(x[:10], y[:10]), (x[10:20], y[10:20])], solver=solver, **fit),
        Weights("weigh", weigh, data=[(x[20:], y[20:])], optimizer=torch.optim.Adam(weigh.parameters(), 0.01)),
    )


class Log(Callback):
    def __init__(self):
        self.updates = []

    def on_update(self, engine, update):
        self.updates.append(update)


def distance(graph, other):
    pairs = zip(graph.problems.values(), other.problems.values(), strict=True)
    return max(difference([one], [two]) for one, two in pairs)


def test_training_on_bettys_engine_is_training_here():
    solver, logs = FiniteDifference(radius=0.01), (Log(), Log())
    graphs = network_graph(solver), network_graph(solver)
    Engine(graphs[0], callbacks=[logs[0]]).run(5)
    bridge.BettyEngine(graphs[1], callbacks=[logs[1]]).run(5)
    assert distance(*graphs) < CLOSE
    for here, there in zip(logs[0].updates, logs[1].updates, strict=True):
        assert (here.level, here.step, here.metrics) == (there.level, there.step, there.metrics)
        assert here.loss == pytest.approx(there.loss, rel=CLOSE)
        assert here.gradient_norm == pytest.approx(there.gradient_norm, rel=1e-4)  # of a difference in float32
        for name, report in here.solves.items():
            assert (report.evaluations, report.products) == (there.solves[name].evaluations, 1)


@pytest.mark.parametrize(
    ("solver", "ours"),
    [
        (bridge.Darts(0.001), FiniteDifference(radius=0.001)),
        (bridge.Neumann(4, 0.05, damping=2.0), Neumann(5, 0.05, damping=2.0)),
        (bridge.Neumann(9, 0.05, damping=2.0), Neumann(10, 0.05, damping=2.0)),
        (bridge.Cg(1), ConjugateGradient(1)),
        (bridge.Cg(1, damping=2.0), ConjugateGradient(1, damping=2.0)),
    ],
    ids=str,
)
def test_hypergradients_at_one_point_agree_and_change_nothing(solver, ours):
    graph = network_graph(ours)
    for problem in graph.problems.values():
        problem.module.double()
    for batches in graph.batches.values():
        batches.data = [(x.double(), y) for x, y in batches.data]
    engine = bridge.BettyEngine(graph, solver=solver)
    engine.run(2)
    before, random = {name: one.module.state_dict() for name, one in graph.problems.items()}, torch.get_rng_state()
    before = {name: {key: value.clone() for key, value in some.items()} for name, some in before.items()}
    found = engine.solve_hypergradient("weigh")
    expected = engine.solve_hypergradient("weigh", {"fit": ours})
    for name, some in before.items():
        assert all(torch.equal(value, graph.problems[name].module.state_dict()[key]) for key, value in some.items())
    assert torch.equal(random, torch.get_rng_state())
    assert relative_error(flat(found.values), flat(expected.values)) < CLOSE
    assert relative_error(flat(engine.hypergradient("weigh")), flat(found.values)) == 0


def three_levels(solvers):
    """Both paths: the top reads both levels below it, and both read it."""
    torch.manual_seed(0)
    values = {name: torch.randn(4, dtype=torch.float64) for name in ("low", "mid", "top")}
    matrix = torch.randn(4, 4, dtype=torch.float64)
    curved = matrix @ matrix.T / 8 + torch.eye(4, dtype=torch.float64)
    functions = {
        "low": lambda v: v["low"] @ curved @ v["low"] / 2 - (v["low"] * v["top"].sin()).sum(),
        "mid": lambda v: (v["mid"] - v["low"] * v["top"]).square().sum() / 2,
        "top": lambda v: (v["mid"] - v["low"]).cos().sum() + v["top"].square().sum(),
    }
    return toy_graph(functions, values, solvers, rate=0.01, steps=2)


def test_the_adjoint_pass_is_the_sum_over_the_paths_that_betty_finds():
    solvers = dict.fromkeys(("low", "mid"), FiniteDifference(radius=1e-4))
    graph = three_levels(solvers)
    engine = bridge.BettyEngine(graph)
    paths = {" ".join(level.level.name for level in path) for path in engine.levels["top"].paths}
    assert paths == {"top mid low top", "top low top", "top mid top"}
    engine.run(2)
    expected = engine.solve_hypergradient("top", solvers)
    assert relative_error(flat(engine.hypergradient("top")), flat(expected.values)) < CLOSE
    calls = []
    engine.evaluate = lambda level, part, fresh: (
        calls.append(level) or type(engine).evaluate(engine, level, part, fresh)
    )
    report = engine.solve_hypergradient("top").reports["low"]
    assert (calls.count(engine.levels["low"]), report.evaluations, report.products) == (4, 4, 2)  # once for each path
    assert expected.reports["low"].evaluations == 2
    other = three_levels(solvers)
    Engine(other).run(2)
    assert distance(graph, other) < CLOSE


def chain(solvers, approximate=True):
    """Each level reads the next above and below it."""
    torch.manual_seed(0)
    values = {name: torch.randn(4, dtype=torch.float64) for name in ("low", "mid", "top")}
    functions = {
        "low": lambda v: (v["low"] - v["mid"].sin()).square().sum() / 2,
        "mid": lambda v: (v["mid"] - v["low"] * v["top"]).square().sum() / 2,
        "top": lambda v: v["mid"].cos().sum() + v["top"].square().sum(),
    }
    return toy_graph(functions, values, solvers, rate=0.01, steps=2, approximate=approximate)


def test_in_a_chain_betty_leaves_out_the_response_of_the_inner_level():
    graph = chain(dict.fromkeys(("low", "mid"), FiniteDifference(radius=1e-4)))
    low, mid, top = (flat(problem.variables()).detach() for problem in graph.problems.values())
    found = flat(bridge.BettyEngine(graph).hypergradient("top"))
    assert relative_error(found, 2 * top - low * mid.sin()) < CLOSE  # mid's gradient mid - low * top, low held
    assert relative_error(flat(Engine(graph).hypergradient("top")), found) > 0.1
    exact = chain({"low": Identity(), "mid": Identity()}, approximate=False)
    with pytest.raises(bridge.BettyError, match=r"level 'low' reads 'mid' above it, below 'top'.*approximate=True"):
        bridge.BettyEngine(exact, solver=bridge.Darts())


def test_a_run_goes_on_from_its_state():
    graphs = [network_graph(FiniteDifference(radius=0.01)) for _ in range(3)]
    bridge.BettyEngine(graphs[0]).run(4)
    engine = bridge.BettyEngine(graphs[1])
    engine.run(2)
    again = bridge.BettyEngine(graphs[2])
    again.load_state_dict(engine.state_dict())
    again.run(2)
    assert again.step == 4
    assert distance(graphs[0], graphs[2]) == 0


def frozen(graph):
    graph.problems["fit"].module[0].weight.requires_grad_(False)
    return graph


def with_an_unused_parameter():
    graph = network_graph(ConjugateGradient(3, damping=5.0), scheduler=None)
    fit = graph.problems["fit"]
    fit.module.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    fit.optimizer = torch.optim.Adam(fit.module.parameters(), 0.01)
    return graph


@pytest.mark.parametrize(
    ("make", "solver", "text"),
    [
        (lambda: chain({"low": Dense(), "mid": Dense()}), bridge.Cg(), "cg method is not supported for higher"),
        (lambda: chain({"low": Dense(), "mid": Dense()}), bridge.Neumann(), "neumann method is not supported"),
        (lambda: frozen(network_graph(Dense())), bridge.Cg(), "differentiates the frozen parameters of level 'fit'"),
        (with_an_unused_parameter, bridge.Cg(), "depends on every parameter of the level"),
        (with_an_unused_parameter, bridge.Neumann(), "depends on every parameter of the level"),
        (lambda: network_graph(Dense(), optimizer=None), bridge.Cg(), "level 'fit' has no optimizer"),
        (
            lambda: network_graph(Dense(), accumulate=2),
            bridge.Cg(),
            "levels.fit.accumulate: got 2; on Betty",
        ),
        (lambda: network_graph(Dense(), solve_share=0.5), bridge.Cg(), "levels.fit.solve_share: got 0.5"),
    ],
)
def test_what_betty_refuses_is_one_line(make, solver, text):
    graph = make()
    with pytest.raises(bridge.BettyError, match=text) as error:
        bridge.BettyEngine(graph, solver=solver).hypergradient(graph.top)
    assert "\n" not in str(error.value)


def test_a_level_that_starts_anew_is_trained_by_no_schedule_of_bettys():
    class Anew(Fit):
        def begin(self):
            self.optimizer.state.clear()

    engine = bridge.BettyEngine(network_graph(FiniteDifference(radius=0.01), fit_kind=Anew))
    with pytest.raises(bridge.BettyError, match="level 'fit' restarts before every update of the next level up"):
        engine.run(1)


def test_optimizers_and_solvers_that_betty_has_not():
    with pytest.raises(bridge.BettyError, match="optimizer of level 'fit' from its defaults, which AdamW refuses"):
        bridge.BettyEngine(network_graph(FiniteDifference(), kind=torch.optim.AdamW))
    with pytest.raises(
        SettingError, match=r"levels.fit.solver: got 'Dense\(\)'; expected identity, finite_difference, neumann"
    ):
        bridge.BettyEngine(network_graph(Dense()))


def test_an_error_of_a_loss_is_not_bettys():
    graph = network_graph(FiniteDifference())
    engine = bridge.BettyEngine(graph)
    graph.problems["fit"].loss = lambda levels, batch, draws: {}["nothing"]
    with pytest.raises(KeyError, match="nothing"):
        engine.run(1)


def test_an_unused_parameter_is_no_matter_here():
    without = network_graph(ConjugateGradient(3, damping=5.0), scheduler=None)
    found, expected = (Engine(graph).hypergradient("weigh") for graph in (with_an_unused_parameter(), without))
    assert relative_error(flat(found), flat(expected)) < CLOSE
