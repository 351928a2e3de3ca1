"""Habits of PyTorch code: plateau schedulers, a loss that takes its batch apart, metrics, bare parameters."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from regression import BATCHES, Level, X, Y, assert_equal, bilevel, dense_hypergradient, fit, linear, ridge, single
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, SequentialLR, StepLR

from multilevel import Callback, Engine, Graph
from multilevel.problems import GraphError, LossError, load_checkpoint, save_checkpoint


class Halving(LRScheduler):
    """A scheduler of a user's own that asks for metrics by keyword."""

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, *, metrics=None):
        super().step()


class Watching(Halving):
    def __init__(self, optimizer):
        self.seen = []
        super().__init__(optimizer)

    def _initial_step(self):
        self._step_count = 0

    def step(self, *, metrics):
        self.seen.append(metrics)
        self.optimizer.param_groups[0]["lr"] = 0.1 / len(self.seen)


def plateau(optimizer):
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def test_a_plateau_scheduler_is_given_the_mean_loss_of_the_update():
    module, expected = linear(), linear()
    problem = single(module, rate=0.3, accumulate=2)
    problem.scheduler = plateau(problem.optimizer)
    Engine(Graph(problem)).run(8)
    optimizer = SGD(expected.parameters(), 0.3, 0.9)
    scheduler = plateau(optimizer)
    for update in range(8):
        batches = [BATCHES[(2 * update + part) % len(BATCHES)] for part in range(2)]
        loss = sum(mse_loss(expected(x), y) for x, y in batches) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step(loss.item())
    assert_equal(module, expected)
    assert problem.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 0.3
    assert problem.scheduler.best == pytest.approx(scheduler.best, rel=1e-14)


def test_any_scheduler_that_needs_metrics_is_given_the_loss():
    losses = []

    class Losses(Callback):
        def on_update(self, engine, update):
            losses.append(update.loss)

    problem = single(linear())
    problem.scheduler = Watching(problem.optimizer)
    Engine(Graph(problem), callbacks=[Losses()]).run(3)
    assert problem.scheduler.seen == losses
    problem.scheduler = Halving(problem.optimizer)  # metrics has a default
    Engine(Graph(problem)).run(1)


def test_a_run_with_a_plateau_scheduler_resumes_to_the_last_bit(tmp_path):
    def engine():
        module = linear()
        problem = single(module, rate=0.3)
        problem.scheduler = plateau(problem.optimizer)
        return Engine(Graph(problem)), problem

    (whole, expected), (first, _), (second, problem) = engine(), engine(), engine()
    whole.run(9)
    first.run(4)
    save_checkpoint(first, tmp_path)
    load_checkpoint(second, tmp_path)
    second.run(5)
    assert torch.equal(problem.module.weight, expected.module.weight)
    assert problem.scheduler.state_dict() == expected.scheduler.state_dict()
    assert problem.optimizer.param_groups[0]["lr"] == expected.optimizer.param_groups[0]["lr"] < 0.3


def refused(module, optimizer=None, scheduler=None):
    optimizer = optimizer and optimizer(module.parameters())
    return lambda: Level("fit", module, fit, optimizer=optimizer, scheduler=scheduler and scheduler(optimizer))


class Closure(SGD):
    def step(self, evaluate):
        return super().step(evaluate)


class ByEpoch(StepLR):
    def step(self, epoch):
        super().step(epoch)

    def _initial_step(self):
        pass


COMPLEX = nn.ParameterDict({"z": nn.Parameter(torch.zeros(2, dtype=torch.complex64))})
REFUSED = {
    "complex": (refused(COMPLEX), "the parameter 'z' is complex.*view_as_real"),
    "sparse embedding": (refused(nn.Sequential(nn.Embedding(3, 2, sparse=True))), "embedding '0' has sparse gradients"),
    "sparse bag": (refused(nn.Sequential(nn.EmbeddingBag(3, 2, sparse=True))), "embedding '0' has sparse gradients"),
    "LBFGS": (refused(linear(), torch.optim.LBFGS), "the step of LBFGS needs closure"),
    "a closure by another name": (refused(linear(), lambda p: Closure(p, 0.1)), "the step of Closure needs evaluate"),
    "an epoch": (
        refused(linear(), lambda p: SGD(p, 0.1), lambda optimizer: ByEpoch(optimizer, 1)),
        "the step of ByEpoch needs epoch",
    ),
    "an underscore": (lambda: Level("_inner", linear(), fit), "begins with a letter.*'_inner'"),
    "no module": (
        lambda: Level("fit", [nn.Parameter(torch.ones(1))], fit),
        "an nn.Module or an nn.Parameter; got list",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_work_is_refused_by_name(case):
    cause, text = REFUSED[case]
    with pytest.raises(GraphError, match=text) as caught:
        cause()
    assert "\n" not in str(caught.value)


def test_a_sparse_gradient_of_a_function_is_named():
    def rows(levels, batch):
        return nn.functional.embedding(torch.tensor([0, 2]), levels.fit.weight, sparse=True).square().sum()

    table = nn.Embedding(3, 2)
    with pytest.raises(GraphError, match="level 'fit': the gradient of the parameter 'weight' is sparse"):
        Engine(Graph(single(table, rows))).run(1)


def test_what_only_looks_alike_is_taken():
    frozen = nn.ModuleDict({"table": nn.Embedding(3, 2, sparse=True), "head": nn.Linear(2, 1)})
    frozen["table"].requires_grad_(False)
    frozen.register_buffer("rotation", torch.zeros(2, dtype=torch.complex64))
    frozen.z = nn.Parameter(torch.zeros(2, dtype=torch.complex64), requires_grad=False)
    refused(frozen, lambda p: SGD(p, 0.1))()
    module = linear()
    optimizer = SGD(module.parameters(), 0.1)
    chained = SequentialLR(optimizer, [StepLR(optimizer, 1), StepLR(optimizer, 2)], [1])  # hides the optimizer's step
    Level("fit", module, fit, optimizer=optimizer, scheduler=chained)


BAD_METRICS = {
    "vector": ({"per_class": torch.ones(3)}, r"metric 'per_class' of level 'fit' is a tensor of shape \[3\]"),
    "array": ({"per_class": torch.ones(3).numpy()}, "metric 'per_class' of level 'fit' is ndarray"),
    "text": ({"name": "a"}, "metric 'name' of level 'fit' is str"),
    "None": ({"name": None}, "metric 'name' of level 'fit' is NoneType"),
    "logits": (torch.ones(3, 1), r"returned a tuple of \(a tensor of shape \[\], a tensor of shape \[3, 1\]\)"),
}


@pytest.mark.parametrize("case", list(BAD_METRICS))
def test_metrics_that_are_no_numbers_are_named(case):
    metrics, text = BAD_METRICS[case]
    with pytest.raises(LossError, match=text) as caught:
        Engine(Graph(single(linear(), lambda levels, batch: (fit(levels, batch), metrics))))
    assert "\n" not in str(caught.value)


def test_three_results_are_named():
    with pytest.raises(LossError, match=r"a tuple of \(a tensor of shape \[\], dict, int\)"):
        Engine(Graph(single(linear(), lambda levels, batch: (fit(levels, batch), {}, 1))))


def test_a_metric_may_be_in_the_graph_and_of_one_element():
    seen = []

    class Keep(Callback):
        def on_update(self, engine, update):
            seen.append(update)

    def function(levels, batch):
        loss = fit(levels, batch)
        return loss, {"loss": loss, "one": loss[None, None], "number": 2, "numpy": loss.detach().numpy()}

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Engine(Graph(single(linear(), function)), callbacks=[Keep()]).run(1)
    assert seen[0].metrics == {"loss": seen[0].loss, "one": seen[0].loss, "number": 2, "numpy": seen[0].loss}


def popping(levels, batch):
    target = batch.pop("y")
    batch["x"] = batch["x"].clone()
    return mse_loss(levels.fit(batch.pop("x")), target) + levels.penalty.exp() * levels.fit.weight.square().sum()


def test_a_loss_may_take_its_batch_apart():
    penalty = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))
    module, batch = linear(), {"x": X, "y": Y}
    graph = bilevel(module, penalty, rate=0.0)
    graph.problems["fit"].function = popping
    graph = Graph(*graph.problems.values())
    graph.batches["fit"].data = [batch]
    engine = Engine(graph)
    engine.run(2)
    assert list(batch) == ["x", "y"]
    expected = dense_hypergradient(module, penalty).item()
    assert engine.hypergradient("penalty")["value"].item() == pytest.approx(expected, rel=1e-10)


def test_draw_may_write_into_the_batch_that_the_loss_takes():
    class Drawing(Level):
        def draw(self, levels, batch):
            batch["y"] = batch.pop("target")

    module, expected, data = linear(), linear(), [{"x": X, "target": Y}]
    optimizer = SGD(module.parameters(), 0.1)
    function = lambda levels, batch: mse_loss(levels.fit(batch["x"]), batch["y"])  # noqa: E731
    Engine(Graph(Drawing("fit", module, function, optimizer=optimizer, data=data))).run(2)
    optimizer = SGD(expected.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        mse_loss(expected(X), Y).backward()
        optimizer.step()
    assert_equal(module, expected)
    assert list(data[0]) == ["x", "target"]


def test_a_bare_parameter_is_the_tensor_that_losses_read():
    penalty = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))
    module, kinds = linear(), set()

    def lower(levels, batch):
        kinds.add(isinstance(levels.penalty, torch.Tensor))
        return ridge(levels, batch)

    graph = bilevel(module, penalty, rate=0.5)
    graph.problems["fit"].function = lower
    engine = Engine(graph)
    engine.run(1)
    found = (-1 - penalty.item()) / 0.5
    assert found == pytest.approx(
        dense_hypergradient(module, torch.tensor(-1.0, dtype=torch.float64)).item(), rel=1e-10
    )
    assert kinds == {True}
    assert list(engine.hypergradient("penalty")) == ["value"]
    assert engine.state_dict()["levels"]["penalty"]["module"]["value"].item() == penalty.item()
    assert SimpleNamespace(**graph.problems["penalty"].variables()).value is penalty
