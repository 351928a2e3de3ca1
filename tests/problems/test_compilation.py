"""With compile, calls in updates run as compiled functions where they can, and every result stays what it was."""

import json

import pytest
import torch
import torch._dynamo.utils as dynamo_utils
from compiled_engines import (
    Branching,
    Counting,
    Fit,
    FitDrawing,
    Net,
    Notices,
    Penalized,
    WeighByParts,
    X,
    assert_same,
    engine,
    state,
)
from solver_table import ROWS
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from multilevel import Engine, Graph, Problem
from multilevel.problems import load_checkpoint, save_checkpoint
from multilevel.problems.evaluation.compilation import Compilation
from multilevel.problems.evaluation.loss_mode import LossMode
from multilevel.problems.evaluation.substitution import Modules
from multilevel.problems.reference import reference_hypergradient
from multilevel.runs.event_log import EventLog
from multilevel.runs.folder import RunFolder
from multilevel.solvers import ConjugateGradient, FiniteDifference


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    dynamo_utils.counters.clear()


SELECTED = [
    row
    for row in ROWS
    if (row.name, *row.options)
    in {
        ("identity", "product", "measure_residual"),
        ("finite_difference",),
        ("conjugate_gradient", "iterations", "tolerance"),
        ("first_order", "steps", "step_size"),
        ("unrolled", "steps"),
    }
]


@pytest.mark.parametrize("row", SELECTED, ids=str)
def test_a_step_and_a_hypergradient_are_the_same_with_every_kind_of_solver(row):
    backend = Counting()
    compiled = engine(backend, row.solver())
    # Differences of gradients multiply rounding by the inverse of a small radius.
    differences = row.name in ("finite_difference", "first_order")
    assert_same(compiled, engine(solver=row.solver()), 1e-9 if differences else 1e-12)
    # two updates below with two calls each, one above, and the direct gradient of the hypergradient
    assert backend.calls >= 6
    assert not compiled.notices


@pytest.mark.parametrize("solver", [FiniteDifference(), ConjugateGradient(iterations=3)], ids=str)
def test_the_same_in_single_precision(solver):
    backend = Counting()
    assert_same(engine(backend, solver, dtype=torch.float32), engine(solver=solver, dtype=torch.float32), 1e-6)
    assert backend.calls >= 6


@pytest.mark.parametrize("solver", [FiniteDifference(), ConjugateGradient(iterations=2)], ids=str)
def test_solves_call_nothing_compiled(solver):
    backend = Counting()
    compiled = engine(backend, solver)
    compiled.run(1)
    backend.calls = 0
    compiled.hypergradient("weigh")
    assert backend.calls == 1  # the direct gradient makes a call on fit


def test_methods_and_submodules_are_compiled_and_draws_are_not():
    backend = Counting()
    compiled = engine(backend, fit=FitDrawing, weigh=WeighByParts)
    assert_same(compiled, engine(fit=FitDrawing, weigh=WeighByParts), 1e-9, steps=2)
    # of fit: itself, last, features; of weigh: itself
    assert backend.graphs == 4


def test_a_module_that_cannot_be_compiled_runs_as_it_is_and_a_line_says_so():
    backend = Counting()
    compiled = engine(backend, net=Branching)
    assert_same(compiled, engine(net=Branching), 1e-9, steps=2)
    assert len(compiled.notices) == 1
    assert compiled.notices[0].startswith("compile: Branching is not compiled: Unsupported: Data-dependent branching")
    assert backend.calls > 0  # the other methods are


def without_compiler(graph, inputs):
    raise RuntimeError("no C++ compiler\n\nand how to get one")


def without_backward():
    def fails(graph, inputs):
        raise RuntimeError("no backward pass")

    return aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=fails)


@pytest.mark.parametrize(
    ("backend", "reason"), [(without_compiler, "no C++ compiler"), (without_backward(), "no backward pass")]
)
def test_a_backend_that_fails_leaves_one_line_and_the_same_results(backend, reason):
    compiled = engine(backend)
    assert_same(compiled, engine(), 1e-9)
    assert len(compiled.notices) == 1
    assert compiled.notices[0].endswith(reason)


@pytest.mark.parametrize("extra", [nn.Dropout, nn.BatchNorm1d, "both"])
def test_dropout_is_not_compiled_and_running_statistics_move_once(extra):
    def net():
        both = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.4))
        return Net(both if extra == "both" else extra(6) if extra is nn.BatchNorm1d else extra(0.4))

    backend = Counting()
    compiled = engine(backend, net=net, batch=8)
    assert_same(compiled, engine(net=net, batch=8), 1e-9, steps=2)
    assert backend.calls > 0
    drawing = [line for line in compiled.notices if "random numbers" in line]
    assert compiled.notices == drawing
    assert len(drawing) == (extra is not nn.BatchNorm1d)


def test_a_loss_that_keeps_the_graph_of_a_gradient_is_evaluated_anew_without_compiled_functions():
    backend = Counting()
    compiled = engine(backend, fit=Penalized)
    assert_same(compiled, engine(fit=Penalized), 1e-9)
    assert compiled.notices == [
        "compile: the loss of level 'fit' is not compiled: it takes a gradient and keeps its graph"
    ]
    assert backend.calls > 0


class Transformed(Fit):
    def loss(self, levels, batch, draws):
        slopes = torch.func.vmap(torch.func.grad(lambda x: levels.fit(x[None]).sum()))(batch[0])
        return super().loss(levels, batch, draws) + (slopes**2).mean()


def test_calls_under_function_transforms_are_made_as_they_are():
    backend = Counting()
    compiled = engine(backend, fit=Transformed)
    assert_same(compiled, engine(fit=Transformed), 1e-9)
    assert backend.calls > 0
    assert not compiled.notices


class Predicting(Problem):
    def outputs(self, levels, batch, draws):
        return levels.fit(batch[0])

    def criterion(self, outputs, levels, batch, draws):
        return (levels.weigh(batch[0]).sigmoid() * (outputs - batch[1]).square()).mean()


@pytest.mark.parametrize("product", ["reverse", "forward", "finite_difference"])
def test_gauss_newton_products(product):
    def solver():
        return ConjugateGradient(iterations=2, damping=0.1, curvature="gauss_newton", product=product)

    backend = Counting()
    assert_same(engine(backend, solver(), fit=Predicting), engine(solver=solver(), fit=Predicting), 1e-9)
    assert backend.calls > 0


def test_references_are_not_compiled():
    backend = Counting()
    compiled, plain = (engine(one, dtype=torch.float32) for one in (backend, False))
    for one in (compiled, plain):
        one.run(1)
    before = backend.calls
    found, expected = (reference_hypergradient(one, "weigh", {"fit": 0.1}) for one in (compiled, plain))
    assert before > 0
    assert backend.calls == before
    for key, value in expected.values.items():
        torch.testing.assert_close(found.values[key], value, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    whole, first, second = (engine(Counting(), dtype=torch.float32) for _ in range(3))
    whole.run(2)
    first.run(1)
    save_checkpoint(first, tmp_path)
    load_checkpoint(second, tmp_path)
    second.run(1)
    for key, value in state(whole).items():
        assert torch.equal(state(second)[key], value), key


def test_batches_of_two_sizes_are_compiled_and_of_many_sizes_are_not():
    backend = Counting()
    compiled = engine(backend, batch=20)  # and a batch of 4
    assert_same(compiled, engine(batch=20), 1e-9)
    assert backend.calls > 0
    assert not compiled.notices

    sizes = [X[:size].double() for size in range(1, 11)]
    module = nn.Linear(4, 1).double()

    class Alone(Problem):
        def loss(self, levels, batch, draws):
            return levels.alone(batch).square().mean()

    notices = Notices()
    graph = Graph(Alone("alone", module, optimizer=torch.optim.SGD(module.parameters(), 0.01), data=sizes))
    Engine(graph, compile=backend, callbacks=[notices]).run(10)
    assert len(notices.lines) == 1
    assert "Linear is not compiled: the shapes" in notices.lines[0]


def test_many_modules_are_compiled():
    backend = Counting()
    compilation = Compilation(backend)
    for width in range(1, 11):
        module = nn.Linear(4, width)
        with compilation.installed("wide", [module], LossMode(Modules({}).substitution({}), {}, {})):
            compiled = module(X)
        assert torch.equal(compiled, module(X))
    assert backend.calls == 10
    assert not compilation.notices


def test_under_a_default_device_nothing_is_compiled_and_a_line_says_so():
    backend = Counting()
    compiled = engine(backend)
    with torch.device("cpu"):
        compiled.run(1)
    assert backend.calls == 0
    assert compiled.notices == ["compile: calls are not compiled: the mode DeviceContext is active"]


def test_a_notice_is_logged_and_is_no_update(tmp_path):
    made = engine(without_compiler)
    made.callbacks.append(EventLog(tmp_path / "metrics.jsonl"))
    made.run(2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(one["step"], one["notice"]) for one in lines if "notice" in one] == [(0, made.notices[0])]
    records, skipped = RunFolder(tmp_path).read_updates()
    assert (len(records), len(skipped), len(lines)) == (6, 0, 7)
