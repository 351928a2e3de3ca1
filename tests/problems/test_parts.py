"""Updates over parts of a batch that are not alike, against the mean of their losses written as one function."""

import pytest
import torch
from toy import Vector, relative_error

from multilevel import Callback, Engine, Graph, Problem
from multilevel.problems.hypergradient import mean_values
from multilevel.solvers import SOLVERS

DOUBLE = {"dtype": torch.float64}
generator = torch.Generator().manual_seed(0)
LOW, TOP = (torch.randn(4, generator=generator, **DOUBLE) for _ in range(2))
LOW_PARTS, TOP_PARTS = torch.randn(2, 2, 4, generator=generator, **DOUBLE)


def low_loss(x, y, batch):
    return 2 * x.square().sum() + (x * batch).exp().sum() / 9 + (x * batch) @ y.sin()


def top_loss(x, y, batch):
    return (x * batch - 1).square().sum() + (batch * y).cos().sum()


class Level(Problem):
    def __init__(self, name, value, loss, parts, solver=None):
        module = Vector(value)
        module.first, module.second = (torch.nn.Parameter(torch.ones((), **DOUBLE)) for _ in range(2))
        sgd = torch.optim.SGD(module.parameters(), 0.0)
        super().__init__(name, module, optimizer=sgd, data=list(parts), accumulate=len(parts), solver=solver)
        self.function, self.parts = loss, parts

    def loss(self, levels, batch, draws):
        value = self.function(levels.low.value, levels.top.value, batch)
        own = getattr(levels, self.name)
        if torch.equal(batch, self.parts[1]):  # each part uses a variable that the other does not
            return value + 3 * own.second.square(), {"second": own.second * 5}
        return value + own.first.square(), {"first": float(value)}


class Updates(Callback):
    def __init__(self):
        self.seen = {}

    def on_update(self, engine, update):
        self.seen[update.level] = update


def engine_of(solver):
    """After one step of rate 0, so that its records have both parts of either level."""
    updates = Updates()
    graph = Graph(Level("low", LOW, low_loss, LOW_PARTS, solver), Level("top", TOP, top_loss, TOP_PARTS))
    engine = Engine(graph, callbacks=[updates])
    engine.run(1)
    return engine, updates.seen


def mean(loss, parts):
    return lambda x, y: sum(loss(x, y, batch) for batch in parts) / len(parts)


def expected():
    """The implicit hypergradient of the mean losses, densely."""
    slope_x, slope_y = torch.func.grad(mean(top_loss, TOP_PARTS), (0, 1))(LOW, TOP)
    (own, across), _ = torch.func.hessian(mean(low_loss, LOW_PARTS), (0, 1))(LOW, TOP)
    return slope_y - across.T @ torch.linalg.solve(own, slope_x)


@pytest.mark.parametrize(
    ("solver", "options", "tolerance"),
    [
        ("dense", {}, 1e-9),
        ("conjugate_gradient", {"iterations": 20, "tolerance": 1e-12, "product": "forward"}, 1e-9),
        ("neumann", {"terms": 300, "tolerance": 1e-8, "product": "finite_difference"}, 1e-5),
        ("first_order", {"steps": 100}, 1e-5),
    ],
)
def test_a_hypergradient_is_that_of_the_mean_over_parts(solver, options, tolerance):
    engine, _ = engine_of(SOLVERS[solver](**options))
    found = engine.hypergradient("top")
    assert relative_error(found["value"], expected()) < tolerance
    assert (found["first"].item(), found["second"].item()) == (1.0, 3.0)  # half of slopes 2 and 6: one of two uses it


def test_an_update_has_the_mean_gradient_and_loss():
    _, seen = engine_of(SOLVERS["dense"]())
    slope = torch.func.grad(mean(low_loss, LOW_PARTS))(LOW, TOP)
    assert seen["low"].gradient_norm == pytest.approx(
        torch.cat([slope, torch.tensor([1.0, 3.0], **DOUBLE)]).norm().item()
    )
    assert seen["low"].loss == pytest.approx(mean(low_loss, LOW_PARTS)(LOW, TOP).item() + 2)


def test_a_metric_that_a_part_lacks_is_the_mean_over_the_others():
    _, seen = engine_of(SOLVERS["dense"]())
    first = low_loss(LOW, TOP, LOW_PARTS[0]).item()
    assert seen["low"].metrics == {"first": pytest.approx(first), "second": pytest.approx(5.0)}
    three = [(1.0, {"a": 1.0, "b": 4.0}), (2.0, {"a": 3.0}), (6.0, {"c": 0.5})]
    assert mean_values(three) == (3.0, {"a": 2.0, "b": 4.0, "c": 0.5})
