"""What cannot work is a named error of one line."""

import pytest
import torch
from torch import nn
from toy import Function, Vector, toy_graph

from multilevel import Engine, Graph, Problem
from multilevel.problems import GraphError, LossError, NestedChainError, ReadsError
from multilevel.solvers import (
    SOLVERS,
    ConjugateGradient,
    DataError,
    FirstOrder,
    MultilevelError,
    SettingError,
    default_solver,
)
from multilevel.solvers.registry import build

ONE = torch.ones(2)


def square(name):
    return lambda values: values[name].square().sum()


def level(name="a", function=None, module=None, **keywords):
    module = module or Vector(ONE)
    problem = Function(name, ONE, function or square(name), [name], **keywords)
    problem.module = module
    return problem


class Loss(Problem):
    def __init__(self, value, **keywords):
        super().__init__("a", Vector(ONE), **keywords)
        self.value = value

    def loss(self, levels, batch, draws):
        return self.value(levels.a.value)


def nested_chain():
    functions = {
        "q": lambda v: (v["q"] ** 2).sum() + (v["q"] * v["r"]).sum(),
        "r": lambda v: (v["r"] ** 2).sum() + (v["q"] * v["r"] * v["u"]).sum(),
        "u": lambda v: v["r"].sum() + v["u"].sum(),
    }
    return toy_graph(functions, dict.fromkeys("qru", ONE), {"q": ConjugateGradient(), "r": FirstOrder()})


def pinned(reads):
    functions = {"p": lambda v: (v["p"] * v["u"]).sum(), "u": square("p")}
    graph = toy_graph(functions, dict.fromkeys("pu", ONE), {"p": ConjugateGradient()})
    graph.problems["p"].reads = reads
    return graph


def shared():
    module = Vector(ONE)
    return Graph(level("a", module=module), level("b", module=module))


def trained_elsewhere():
    return Function("a", ONE, square("a"), ["a"], optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1))


CASES = {
    "two of one name": (GraphError, "two levels are named 'a'", lambda: Graph(level("a"), level("a"))),
    "no level": (GraphError, "at least one level", lambda: Graph()),
    "no identifier": (GraphError, "'my level'", lambda: level("my level")),
    "a shared parameter": (GraphError, "'a' and 'b' share the parameter 'value'", shared),
    "another module's parameters": (GraphError, "not in its module", trained_elsewhere),
    "an embedding that writes": (
        GraphError,
        "embedding '0' has max_norm",
        lambda: type("Some", (Problem,), {"loss": lambda *_: None})(
            "a", nn.Sequential(nn.Embedding(3, 2, max_norm=1.0))
        ),
    ),
    "no optimizer": (GraphError, "'a' has no optimizer", lambda: Engine(Graph(level())).run(1)),
    "an unknown level": (
        GraphError,
        "unknown level 'b'; the levels are a",
        lambda: Engine(Graph(level())).hypergradient("b"),
    ),
    "a loss of nothing": (
        GraphError,
        "depends on no level's parameters",
        lambda: Engine(Graph(level(function=lambda v: torch.zeros(())))),
    ),
    "a nested chain": (NestedChainError, "read each other", lambda: Engine(nested_chain())),
    "a pinned level that does not exist": (
        ReadsError,
        "'p' is pinned to read 'x', which is not a level",
        lambda: Engine(pinned(("u", "x"))),
    ),
    "too few pinned reads": (
        ReadsError,
        "'p' is pinned to read no level, but its loss reads u",
        lambda: Engine(pinned(())),
    ),
    "a vector as loss": (LossError, r"shape \[2\]", lambda: Engine(Graph(Loss(lambda value: value)))),
    "a number as loss": (LossError, "got float", lambda: Engine(Graph(Loss(lambda value: 1.0)))),
    "a loss of nan": (LossError, "is nan", lambda: Engine(Graph(Loss(lambda value: (value * float("nan")).sum())))),
    "a loss of inf": (LossError, "is inf", lambda: Engine(Graph(Loss(lambda value: (value / 0).sum())))),
    "no data": (DataError, "level 'a' is empty", lambda: Engine(Graph(level(data=[])))),
    "precision": (SettingError, "precision: got 'fp8'", lambda: Engine(Graph(level()), precision="fp8")),
    "steps": (SettingError, "levels.a.steps: got 0", lambda: level(steps=0)),
    "accumulate": (SettingError, "levels.a.accumulate: got 1.5", lambda: level(accumulate=1.5)),
    "clip_norm": (SettingError, "levels.a.clip_norm: got -1", lambda: level(clip_norm=-1)),
    "an unknown solver": (
        SettingError,
        "solver: got 'cg'; expected one of",
        lambda: build("solver", SOLVERS, "cg", {}),
    ),
    "an unknown option": (
        SettingError,
        "solver.alpha: got 1; expected a setting of neumann: terms",
        lambda: build("solver", SOLVERS, "neumann", {"alpha": 1}),
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_error(case):
    kind, text, cause = CASES[case]
    with pytest.raises(kind, match=text) as caught:
        cause()
    assert isinstance(caught.value, MultilevelError)
    assert "\n" not in str(caught.value)


def test_an_iterator_that_has_ended():
    problem = level(data=iter([1, 2]), optimizer=None)
    problem.optimizer = torch.optim.SGD(problem.module.parameters(), 0.1)
    engine = Engine(Graph(problem))
    engine.run(2)
    with pytest.raises(DataError, match="iterator that cannot restart"):
        engine.run(1)


def test_pinned_reads_that_match():
    assert Engine(pinned(("u",))).graph.reads["p"] == ("u",)


def test_a_level_without_a_solver_takes_the_default_one():
    graph = toy_graph({"p": lambda v: (v["p"] * v["u"]).sum(), "u": square("p")}, dict.fromkeys("pu", ONE), {})
    hypergradient = Engine(graph).hypergradient("u")["value"]
    assert graph.problems["p"].solver == default_solver()
    assert graph.problems["u"].solver is None
    torch.testing.assert_close(hypergradient, -2 * ONE, rtol=0, atol=0)  # the mixed derivative is 1, the cotangent 2p


def test_a_nested_chain_is_refused_only_where_it_is_below():
    """Without the top level, r reads q and q reads r is an ordinary bilevel problem."""
    graph = nested_chain()
    bilevel = {name: graph.problems[name] for name in "qr"}
    functions = {"q": bilevel["q"].function, "r": lambda v: (v["r"] ** 2).sum() + (v["q"] * v["r"]).sum()}
    assert Engine(toy_graph(functions, dict.fromkeys("qr", ONE), {"q": ConjugateGradient()})).graph.passes("r") == (
        "q",
    )
