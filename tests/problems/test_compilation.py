"""With compile, calls on levels run as compiled functions where they can, and every result stays what it was."""

import json

import pytest
import torch
from solver_table import ROWS
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.registry import lookup_backend

from multilevel import Callback, Engine, Graph, Problem
from multilevel.event_log import EventLog
from multilevel.problems import load_checkpoint, save_checkpoint
from multilevel.problems.compilation import Compilation
from multilevel.problems.reference import reference_hypergradient
from multilevel.problems.shared_calls import SharedCalls
from multilevel.run_folder import RunFolder
from multilevel.solvers import ConjugateGradient, FiniteDifference
from multilevel.solvers.differentiation import higher_derivatives

generator = torch.Generator().manual_seed(0)
X = torch.randn(24, 4, generator=generator)
Y = torch.randn(24, 1, generator=generator)


class Net(nn.Module):
    """Features of a perceptron with ``extra`` between its layers, and a head."""

    def __init__(self, extra=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), extra or nn.LayerNorm(6), nn.Tanh())
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


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


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


def test_finite_differences_are_compiled_and_second_derivatives_are_not():
    calls = {}
    for name, solver in (("finite differences", FiniteDifference()), ("second", ConjugateGradient(iterations=2))):
        backend = Counting()
        compiled = engine(backend, solver)
        compiled.run(1)
        backend.calls = 0
        compiled.hypergradient("weigh")
        calls[name] = backend.calls
    # the direct gradient makes a call on fit; so does the mixed product at each of two points, which share one on weigh
    assert calls == {"finite differences": 1 + 3, "second": 1}


def test_methods_and_submodules_are_compiled_and_evaluations_without_gradients_share_what_is_compiled():
    backend = Counting()
    compiled = engine(backend, fit=FitDrawing, weigh=WeighByParts)
    assert_same(compiled, engine(fit=FitDrawing, weigh=WeighByParts), 1e-9, steps=2)
    # last, features, fit in fit's parameters; fit without a gradient, drawing and in products; weigh with and without
    assert backend.graphs == 6


class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


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


class Penalized(Fit):
    """From its second evaluation on, which is the first update, the loss differentiates itself twice."""

    evaluations = 0

    def loss(self, levels, batch, draws):
        self.evaluations += 1
        x = (batch[0] + 0.1 * torch.rand_like(batch[0])).requires_grad_()
        slope = torch.autograd.grad(levels.fit(x).sum(), x, create_graph=self.evaluations > 1)[0]
        return super().loss(levels, batch, draws) + (slope**2).mean()


def test_a_loss_that_keeps_the_graph_of_a_gradient_is_evaluated_anew_without_compiled_functions():
    backend = Counting()
    compiled = engine(backend, fit=Penalized)
    assert_same(compiled, engine(fit=Penalized), 1e-9)
    assert compiled.notices == [
        "compile: the loss of level 'fit' is not compiled: it keeps the graph of a gradient of its own"
    ]
    assert backend.calls > 0


def test_a_call_shared_within_a_solve_is_made_again_where_it_is_differentiated_twice():
    made = engine(Counting())
    made.run(1)
    evaluator, part = made.evaluator, made._record_of("fit")[0]
    levels = {
        name: {key: one.requires_grad_() for key, one in evaluator.detached(name).items()} for name in ("fit", "weigh")
    }
    shared = SharedCalls("fit")
    with shared.kept():
        evaluator.replay("fit", part, levels, shared)
        with higher_derivatives():
            loss = evaluator.replay("fit", part, levels, shared)
            slope = torch.autograd.grad(loss, levels["weigh"]["weight"], create_graph=True)[0]
        assert torch.autograd.grad(slope.sum(), levels["weigh"]["weight"])[0].any()


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
        module, x = nn.Linear(4, width), X.clone()
        found = compilation.call(module, "__call__", dict(module.named_parameters()), (x,), {})
        assert torch.equal(found, module(x))
    assert backend.calls == 10
    assert not compilation.notices


def test_under_a_default_device_nothing_is_compiled_and_a_line_says_so():
    backend = Counting()
    compiled = engine(backend)
    with torch.device("cpu"):
        compiled.run(1)
    assert backend.calls == 0
    assert compiled.notices == ["compile: nothing is not compiled: the mode DeviceContext is active"]


def test_a_notice_is_logged_and_is_no_update(tmp_path):
    made = engine(without_compiler)
    made.callbacks.append(EventLog(tmp_path / "metrics.jsonl"))
    made.run(2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(one["step"], one["notice"]) for one in lines if "notice" in one] == [(0, made.notices[0])]
    records, skipped = RunFolder(tmp_path).read_updates()
    assert (len(records), len(skipped), len(lines)) == (6, 0, 7)
