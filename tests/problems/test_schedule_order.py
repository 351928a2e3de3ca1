"""``unrolled`` differentiates the updates of all levels in the order in which they were made, over several updates of
the top level; compared with autograd through the whole schedule written out."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from schedules import (
    DOUBLE,
    P_CURVE,
    QUADRATIC,
    RATE,
    VALUES,
    A,
    B,
    C,
    D,
    Halves,
    Schedule,
    batched_engine,
    engine_of,
    with_sgd,
)
from toy import Function, relative_error, toy_graph

from multilevel import Callback, Engine, Graph, Problem
from multilevel.problems import CheckpointError, load_checkpoint, save_checkpoint
from multilevel.solvers import Identity, Unrolled, UnrolledForward

pytestmark = pytest.mark.filterwarnings("ignore:the records of updates")


@pytest.mark.parametrize("steps", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("outer_steps", [1, 8, 32])
def test_held_upper_level_agrees_with_autograd_through_the_schedule(outer_steps, steps):
    engine = engine_of(lambda: Unrolled(outer_steps=outer_steps), steps)
    engine.advance(2 + outer_steps)
    schedule, upper = Schedule(steps), VALUES["u"].clone().requires_grad_()
    schedule.run(2, [upper.detach()] * 2)
    schedule.detach()
    schedule.run(outer_steps, [upper] * outer_steps)
    expected = torch.autograd.grad(QUADRATIC["u"](schedule.values), upper)[0]
    assert relative_error(engine.hypergradient("u")["value"], expected) < 1e-9


@pytest.mark.parametrize("solver", [Unrolled, UnrolledForward])
def test_in_training_all_outer_steps_share_a_perturbation(solver):
    """The top level moves; the derivative is that of its loss in one shift of all its values."""
    engine = engine_of(lambda: solver(outer_steps=3), steps=2, momentum=0.4)
    uppers = [VALUES["u"]]
    for _ in range(5):
        engine.run(1)
        uppers.append(engine.graph.problems["u"].module.value.detach().clone())
    assert not torch.allclose(uppers[-1], uppers[-2])
    schedule, shift = Schedule(2, momentum=0.4), torch.zeros(4, **DOUBLE, requires_grad=True)
    schedule.run(2, uppers)
    schedule.detach()
    schedule.run(3, [value + shift for value in uppers[2:]])
    schedule.values["u"] = uppers[-1] + shift
    expected = torch.autograd.grad(QUADRATIC["u"](schedule.values), shift)[0]
    assert relative_error(engine.hypergradient("u")["value"], expected) < 1e-9


def test_mixed_solvers_take_each_level_by_itself():
    """With another solver at q, p's updates are differentiated as if q had read their last values."""
    engine = engine_of(Unrolled, steps=2)
    engine.graph.problems["q"].solver = Identity()
    engine.advance()
    values = {name: problem.module.value.detach() for name, problem in engine.graph.problems.items()}
    direct_q = 2 * (values["q"] - 1) + D @ values["p"]
    arriving_p = D.T @ values["q"] + B.T @ direct_q
    response = torch.zeros(4, 4, **DOUBLE)
    for _ in range(4):
        response = response - RATE * (P_CURVE[:, None] * response - A)
    expected = values["u"] + C.T @ direct_q + response.T @ arriving_p
    assert relative_error(engine.hypergradient("u")["value"], expected) < 1e-12


def test_other_levels_that_a_level_reads_have_the_values_that_it_read():
    """s changes between updates of p, but does not depend on u."""
    functions = {
        "s": lambda v: (v["s"] - 3).square().sum(),
        "p": lambda v: (v["s"].square() * v["p"] ** 2).sum() / 2 - v["p"] @ (A @ v["u"]),
        "q": QUADRATIC["q"],
        "u": QUADRATIC["u"],
    }
    starts = {**VALUES, "s": torch.ones(4, **DOUBLE)}
    solvers = {name: Unrolled(outer_steps=4) for name in ("p", "q")}
    engine = Engine(with_sgd(toy_graph(functions, starts, solvers, rate=RATE)))
    assert engine.graph.passes("u") == ("q", "p")
    engine.advance(4)
    values = {**starts, "u": VALUES["u"].clone().requires_grad_()}
    for _ in range(4):
        for name in ("s", "p", "q"):
            leaf = values[name] if values[name].requires_grad else values[name].clone().requires_grad_()
            slope = torch.autograd.grad(functions[name]({**values, name: leaf}), leaf, create_graph=True)[0]
            values[name] = leaf - RATE * slope
    expected = torch.autograd.grad(functions["u"](values), values["u"])[0]
    assert relative_error(engine.hypergradient("u")["value"], expected) < 1e-9


class RestartingHalf(Problem):
    """Level p, which sets the first half of its vector to 0 at every start, and keeps the second."""

    def loss(self, levels, batch, draws):
        return QUADRATIC["p"]({"p": levels.p.value, "u": levels.u.value})

    def begin(self):
        with torch.no_grad():
            self.module.first.zero_()


@pytest.mark.parametrize("solver", [Unrolled, UnrolledForward])
def test_what_a_level_resets_does_not_depend_on_earlier_updates(solver):
    names = list(QUADRATIC)
    restarting = RestartingHalf("p", Halves(VALUES["p"]), solver=solver(outer_steps=2), steps=2)
    fit = Function("q", VALUES["q"], QUADRATIC["q"], names, solver=solver(outer_steps=2), steps=2)
    engine = Engine(with_sgd(Graph(restarting, fit, Function("u", VALUES["u"], QUADRATIC["u"], names))))
    engine.advance(2)
    values = {name: value.clone().requires_grad_() for name, value in VALUES.items()}
    for _ in range(4):
        values["p"] = torch.cat([torch.zeros(2, **DOUBLE), values["p"][2:]])
        for name in ("p", "p", "q"):
            slope = torch.autograd.grad(QUADRATIC[name](values), values[name], create_graph=True)[0]
            values[name] = values[name] - RATE * slope
    expected = torch.autograd.grad(QUADRATIC["u"](values), values["u"])[0]
    assert relative_error(engine.hypergradient("u")["value"], expected) < 1e-9


def test_updates_before_the_window_are_forgotten():
    engine = engine_of(lambda: Unrolled(outer_steps=3), steps=2)
    engine.run(5)
    assert {name: len(history.updates) for name, history in engine.histories.items()} == {"p": 12, "q": 6, "u": 0}
    short = engine_of(Unrolled, steps=2)
    short.run(5)
    assert {name: len(history.updates) for name, history in short.histories.items()} == {"p": 4, "q": 2, "u": 0}


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    whole = engine_of(lambda: Unrolled(outer_steps=4), steps=2, momentum=0.4)
    whole.run(9)
    first = engine_of(lambda: Unrolled(outer_steps=4), steps=2, momentum=0.4)
    first.run(5)
    save_checkpoint(first, tmp_path)
    second = engine_of(lambda: Unrolled(outer_steps=4), steps=2, momentum=0.4)
    load_checkpoint(second, tmp_path)
    second.run(4)
    for name in QUADRATIC:
        resumed, expected = (engine.graph.problems[name].module.value for engine in (second, whole))
        assert torch.equal(resumed, expected)


def test_batches_draws_and_optimizer_states_are_looked_back_on_after_resuming(tmp_path):
    whole, first, second = (batched_engine() for _ in range(3))
    whole.run(9)
    first.run(5)
    save_checkpoint(first, tmp_path)
    load_checkpoint(second, tmp_path)
    second.run(4)
    for name in ("p", "q", "u"):
        resumed, expected = (engine.graph.problems[name].module.value for engine in (second, whole))
        assert torch.equal(resumed, expected)


def test_the_memory_of_the_records_is_said():
    engine, lines = batched_engine(), []
    watch = Callback()
    watch.on_notice = lambda engine, line: lines.append(line)
    engine.callbacks = [watch]
    engine.run(1)
    assert not lines
    engine.run(1)
    engine.run(2)
    assert len(lines) == 1
    assert "outer_steps=4" in lines[0]
    assert "MiB" in lines[0]


def test_a_checkpoint_refuses_what_resuming_could_not_look_back_on(tmp_path):
    hooked = batched_engine()
    hooked.graph.problems["p"].optimizer.register_step_post_hook(
        lambda *_: hooked.graph.problems["p"].module.first.data.mul_(0.9)
    )
    hooked.run(2)
    with pytest.raises(CheckpointError, match="hooks and callbacks changed"):
        save_checkpoint(hooked, tmp_path)


class Pair(NamedTuple):
    x: torch.Tensor


def test_batches_that_would_come_back_otherwise_are_refused(tmp_path):
    engine = batched_engine()
    engine.run(2)
    updates = engine.histories["p"].updates
    part = replace(updates[-1].record[0], batch=[Pair(torch.zeros(4))])
    updates[-1] = replace(updates[-1], record=(part,))
    with pytest.raises(CheckpointError, match=r"a batch or draws with a Pair, on which solver\.outer_steps above 1"):
        save_checkpoint(engine, tmp_path)
