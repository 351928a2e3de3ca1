"""Losses and hypergradients that are not finite: the update is skipped, counted and told; too many end the run."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from multilevel import Callback, Engine, Graph, Problem
from multilevel.problems import Checkpointing, DivergedError, LossError, load_checkpoint, save_checkpoint
from multilevel.problems.errors import NotFiniteError
from multilevel.solvers import SOLVERS, FiniteDifference


class Scaled(Problem):
    """A quadratic whose loss is multiplied by what the batch says, and its gradient too if asked for."""

    def __init__(self, *arguments, gradient_alone=False, **keywords):
        super().__init__(*arguments, **keywords)
        self.gradient_alone = gradient_alone

    def loss(self, levels, batch, draws):
        value = (getattr(levels, self.name).weight - levels.top.weight).square().sum()
        if self.gradient_alone:  # at 0 the slope of exp(log) is 0 times infinity
            return value + (batch * getattr(levels, self.name).weight.sum() ** 2).log().exp() * 0
        return value * batch


class Top(Problem):
    def loss(self, levels, batch, draws):
        return (levels.low.weight * batch).square().sum() + levels.top.weight.square().sum()


class Seen(Callback):
    def __init__(self):
        self.updates, self.skips = [], []

    def on_update(self, engine, update):
        self.updates.append((update.level, update.step))

    def on_skip(self, engine, level, reason):
        self.skips.append((level, engine.step, reason))


def engine(low=(1.0,), top=(1.0,), **keywords):
    torch.manual_seed(0)
    modules = {name: nn.Linear(2, 1, bias=False) for name in ("low", "top")}
    sgd = {name: torch.optim.SGD(module.parameters(), 0.1) for name, module in modules.items()}
    gradient_alone = keywords.pop("gradient_alone", False)
    solver = keywords.pop("solver", FiniteDifference())
    numbers = {"low": [torch.tensor(one) for one in low], "top": [torch.tensor(one) for one in top]}
    graph = Graph(
        Scaled(
            "low",
            modules["low"],
            gradient_alone=gradient_alone,
            optimizer=sgd["low"],
            data=numbers["low"],
            solver=solver,
        ),
        Top("top", modules["top"], optimizer=sgd["top"], data=numbers["top"]),
    )
    return Engine(graph, **keywords)


def weights(of, name):
    return of.graph.problems[name].module.weight.detach().clone()


@contextmanager
def left_alone_by_the_second_of_three_steps(one, name):
    """Three steps; what is inside is run after the second."""
    one.run(1)
    before = weights(one, name)
    one.run(1)
    assert torch.equal(weights(one, name), before)
    yield
    one.run(1)
    assert not torch.equal(weights(one, name), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_with_a_loss_that_is_not_finite_is_skipped(value):
    seen = Seen()
    one = engine(low=(1.0, value, 1.0), callbacks=[seen])
    with left_alone_by_the_second_of_three_steps(one, "low"):
        assert one.skipped == {"low": 1, "top": 1}
    assert one.skipped == {"low": 0, "top": 0}
    assert seen.updates == [("low", 0), ("top", 0), ("low", 2), ("top", 2)]
    assert [skip[:2] for skip in seen.skips] == [("low", 1), ("top", 1)]
    assert f"the loss of level 'low' is {value}" in seen.skips[0][2]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25])
def test_a_gradient_that_is_not_finite_reaches_no_level(value):
    """1e25 is finite and its square is not: the loss itself overflows in float32."""
    seen = Seen()
    one = engine(top=(1.0, value, 1.0), callbacks=[seen])
    with left_alone_by_the_second_of_three_steps(one, "top"):
        assert [skip[:2] for skip in seen.skips] == [("top", 1)]
    assert weights(one, "low").isfinite().all()


def test_a_gradient_of_nan_under_a_finite_loss_is_skipped():
    seen = Seen()
    one = engine(low=(1.0, 0.0, 1.0), gradient_alone=True, callbacks=[seen])
    with left_alone_by_the_second_of_three_steps(one, "low"):
        assert "the hypergradient of level 'low' has norm nan" in seen.skips[0][2]


@pytest.mark.parametrize("low", [(3.0, 0.0, 1.0), (0.0, 3.0, 1.0)])
def test_a_skipped_update_leaves_no_record(low):
    """The hypergradient goes through the last batch that trained the level, or the next one where there is none: the
    skipped one, of 0, has a gradient of nan."""
    one = engine(low=low, gradient_alone=True)
    one.run(1 + low.index(0.0))
    assert one.skipped["low"] == 1
    expected = 2 * (weights(one, "low") - weights(one, "top"))
    torch.testing.assert_close(one.hypergradient("low")["weight"], expected)


def test_a_hypergradient_that_is_not_finite_is_an_error():
    one = engine(low=(0.0,), gradient_alone=True)
    with pytest.raises(NotFiniteError, match="the hypergradient of level 'low' is not finite"):
        one.hypergradient("low")


def test_too_many_in_a_row_end_the_run_with_what_to_try(tmp_path):
    one = engine(
        top=(1.0, 1.0, math.nan, math.nan, math.nan, math.nan),
        callbacks=[Checkpointing(tmp_path, every=1)],
        max_skipped=2,
    )
    with pytest.raises(DivergedError, match="3 updates in a row of level 'top' were skipped") as caught:
        one.run(6)
    assert "lower its learning rate" in str(caught.value)
    assert "solver of 'low': FiniteDifference(" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]  # none while it skips


def test_none_may_be_skipped_where_that_is_asked_for():
    with pytest.raises(DivergedError, match="1 update in a row"):
        engine(low=(1.0, math.nan), max_skipped=0).run(2)


def test_a_loss_that_is_no_scalar_is_an_error_all_the_same():
    with pytest.raises(LossError, match="must be a scalar"):
        engine(low=([1.0, 2.0],)).run(1)


@pytest.mark.parametrize("solver", ["finite_difference", "unrolled", "conjugate_gradient"])
def test_no_hypergradient_goes_through_a_level_without_an_update_in_its_step(tmp_path, solver):
    """So that a run that goes on from a checkpoint does what the one that was not stopped does."""
    low = (1.0, 1.5, math.nan, 2.0, 3.0)
    seen = Seen()
    whole = engine(low=low, solver=SOLVERS[solver](), callbacks=[seen])
    whole.run(2)
    save_checkpoint(whole, tmp_path)
    whole.run(3)
    assert [skip[:2] for skip in seen.skips] == [("low", 2), ("top", 2)]
    assert "level 'low' below it has had no update in this step" in seen.skips[1][2]
    resumed = engine(low=low, solver=SOLVERS[solver]())
    load_checkpoint(resumed, tmp_path)
    resumed.run(3)
    for name in ("low", "top"):
        assert torch.equal(weights(whole, name), weights(resumed, name))


def test_skips_in_a_row_are_counted_across_a_resumed_run(tmp_path):
    one = engine(top=(1.0, math.nan, math.nan, math.nan), max_skipped=2, callbacks=[Checkpointing(tmp_path, every=1)])
    one.run(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-3"]
    resumed = engine(top=(1.0, math.nan, math.nan, math.nan), max_skipped=2)
    load_checkpoint(resumed, tmp_path)
    assert resumed.skipped == {"low": 0, "top": 2}
    with pytest.raises(DivergedError, match="3 updates in a row"):
        resumed.run(1)


def test_a_stop_before_the_first_step_is_heard():
    class Stop(Callback):
        def on_start(self, engine, steps):
            engine.stop()

    one = engine(callbacks=[Stop()])
    one.run(5)
    assert one.step == 0


def test_an_engine_that_is_stopped_ends_after_its_step():
    class Stop(Callback):
        def on_update(self, engine, update):
            if (update.level, update.step) == ("low", 2):
                engine.stop()

    one = engine(callbacks=[Stop()])
    one.run(10)
    assert one.step == 3
    one.callbacks.clear()
    one.run(2)
    assert one.step == 5
