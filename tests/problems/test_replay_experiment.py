"""``engine.replay`` measures the slopes that autograd through the schedule computes, and leaves no trace."""

import numpy as np
import pytest
import torch
from schedules import QUADRATIC, RATE, VALUES, Schedule, batched_engine, engine_of
from torch.utils._pytree import tree_leaves, tree_map

from multilevel.problems import GraphError
from multilevel.problems.replay import RANDOM
from multilevel.solvers import Identity, SettingError, Unrolled

pytestmark = pytest.mark.filterwarnings("ignore:the records of updates")


def state_of(engine):
    state = {
        "random": engine.updates.random.state_dict(),
        "data": [batches.state_dict() for batches in engine.graph.batches.values()],
    }
    for name, problem in engine.graph.problems.items():
        state[name] = (problem.module.state_dict(), problem.optimizer.state_dict())
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)


def assert_same(before, after):
    for value, other in zip(*map(tree_leaves, (before, after)), strict=True):
        assert np.array_equal(value, other)


def directions(steps, count, outer_steps):
    """The two mean hypergradients of ``unrolled`` over ``outer_steps``, by autograd through the schedule."""
    schedule, halves = Schedule(steps), []
    windows = [dict(schedule.values)]
    for index in range(outer_steps - 1 + count):
        schedule.run(1, [VALUES["u"]])
        schedule.detach()
        windows.append(dict(schedule.values))
        if index >= outer_steps - 1:
            again, upper = Schedule(steps), VALUES["u"].clone().requires_grad_()
            again.values = {name: value.detach().requires_grad_() for name, value in windows[-1 - outer_steps].items()}
            again.run(outer_steps, [upper] * outer_steps)
            halves.append(torch.autograd.grad(QUADRATIC["u"](again.values), upper)[0])
    first, second = (sum(part) for part in (halves[: count // 2], halves[count // 2 :]))
    return first / first.norm(), second / second.norm(), schedule


@pytest.mark.parametrize("steps", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("looking_back", [1, 3])
def test_slopes_on_quadratics_are_those_of_autograd_through_the_schedule(steps, looking_back):
    engine = engine_of(lambda: Unrolled(outer_steps=looking_back), steps)
    replay = engine.replay([1, 8, 32], steps=4, seeds=1, draws=["held"])
    *directed, schedule = directions(steps, 4, looking_back)
    starts = {name: value.detach() for name, value in schedule.values.items()}
    for count in (1, 8, 32):
        upper = VALUES["u"].clone().requires_grad_()
        again = Schedule(steps)
        again.values = {name: value.clone().requires_grad_() for name, value in starts.items()}
        again.run(count, [upper] * count)
        expected = torch.autograd.grad(QUADRATIC["u"](again.values), upper)[0]
        (row,) = (row for row in replay.rows if row.outer_steps == count and row.solver != RANDOM)
        for half, direction in zip(row.halves, directed, strict=True):
            slope = expected.dot(direction).item()
            assert half.measured == pytest.approx([slope], rel=1e-6)
            assert half.halved == pytest.approx([slope], rel=1e-6)
            assert half.predicted == pytest.approx([slope], rel=1e-9)
        assert row.resolved


def test_one_step_solvers_predict_their_own_product():
    engine = engine_of(Identity, 2)
    replay = engine.replay([2], steps=2, seeds=1, draws=["held"])
    engine.advance(1)
    direction = engine.hypergradient("u")["value"]
    engine.advance(3)
    expected = engine.hypergradient("u")["value"].dot(direction / direction.norm()).item()
    assert replay.rows[0].halves[0].predicted == pytest.approx([expected], rel=1e-12)


def test_nothing_remains_of_a_replay_and_the_run_goes_on_as_without():
    engine, other = batched_engine(), batched_engine()
    for each in (engine, other):
        each.run(3)
    before, records = state_of(engine), {name: history.record for name, history in engine.histories.items()}
    replay = engine.replay([1, 3], steps=4, seeds=2)
    assert_same(before, state_of(engine))
    assert all(history.record is records[name] for name, history in engine.histories.items())
    assert {row.draws for row in replay.rows} == {"held", "renewed"}
    for each in (engine, other):
        each.run(3)
    assert_same(state_of(engine), state_of(other))


def test_seeds_have_other_batches_and_draws():
    replay = batched_engine().replay([2], steps=2, seeds=3, draws=["held"])
    measured = replay.rows[0].halves[0].measured
    assert len(measured) == len(set(measured)) == 3


def test_predictions_agree_with_slopes_where_batches_and_draws_are_held():
    for row in batched_engine().replay([1, 3], steps=4, seeds=2, draws=["held"], size=0.002).rows:
        if row.solver != RANDOM:
            for half in row.halves:
                assert half.predicted == pytest.approx(half.measured, rel=1e-4)


def test_other_measures_and_failing_solvers():
    engine = engine_of(Identity, 1)
    middle = engine.graph.problems["q"].module
    solvers = {"works": dict.fromkeys(("p", "q"), Identity()), "fails": dict.fromkeys(("p", "q"), Unrolled(steps=1))}
    engine.graph.problems["q"].optimizer = torch.optim.Adagrad(middle.parameters(), RATE)
    measures = {"square": lambda: middle.value.square().sum().item()}
    replay = engine.replay([1], steps=2, seeds=1, draws=["held"], solvers=solvers, measures=measures)
    assert "Adagrad" in replay.problems["fails"]
    assert {(row.solver, row.measure) for row in replay.rows} == {
        (solver, measure) for solver in ("works", RANDOM) for measure in ("loss", "square")
    }
    assert all(not half.predicted for row in replay.rows if row.measure == "square" for half in row.halves)
    assert "fails: " in str(replay)
    assert "square" in str(replay)


@pytest.mark.parametrize(
    "settings", [{"steps": 3}, {"size": 0.0}, {"seeds": 0}, {"held_out": 0}, {"draws": ["new"]}, {"outer_steps": [0]}]
)
def test_unusable_settings(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        engine_of(Identity, 1).replay(**settings)


def test_solvers_and_measures_that_cannot_be_replayed_are_refused():
    engine = engine_of(Identity, 1)
    for solvers in ({}, {"x": {}}, {"x": {"p": Identity()}}):
        with pytest.raises(SettingError, match=r"solvers: got .*; expected for each label, a solver of each of q, p"):
            engine.replay([1], solvers=solvers)
    with pytest.raises(SettingError, match=r"measures: .*; expected other names than 'loss'"):
        engine.replay([1], measures={"loss": lambda: 0.0})
    engine.graph.problems["p"].optimizer = None
    with pytest.raises(GraphError, match="level 'p' has no optimizer"):
        engine.replay([1])


def test_a_replay_without_any_direction_prints_the_reason():
    engine = engine_of(lambda: Unrolled(steps=1), 1)
    parameters = engine.graph.problems["p"].module.parameters()
    engine.graph.problems["p"].optimizer = torch.optim.RMSprop(parameters, RATE)
    text = str(engine.replay([1], steps=2, seeds=1, control=False))
    assert text.startswith("own solvers: level 'p': an unrolled solver differentiates plain SGD")
