"""Every draw of a loss is replayed, the Gaussian that a generator keeps for the next call included."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from multilevel import Engine, Graph, Problem
from multilevel.problems.evaluation import numpy_state as numpy_states
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.solvers import FiniteDifference, Identity

GAUSSIANS = {"numpy": np.random.standard_normal, "python": lambda: random.gauss(0, 1)}
SOLVERS = {
    "forward": Identity(product="forward"),
    "reverse": Identity(product="reverse"),
    "finite_difference": FiniteDifference(radius=1e-3),
}
BATCHES = [torch.tensor(value, dtype=torch.float64) for value in (0.0, 1.0, 2.0)]


class Lower(Problem):
    """Draws an odd number of Gaussians for every batch, or from the second one on: each leaves one kept behind."""

    gaussian, where, first = staticmethod(np.random.standard_normal), "loss", 0

    def odd(self, batch, place):
        if place != self.where or batch.item() < self.first:
            return 0.0
        return sum(float(self.gaussian()) for _ in range(3))

    def draw(self, levels, batch):
        return self.odd(batch, "draw")

    def loss(self, levels, batch, draws):
        self.noises.append(draws + self.odd(batch, "loss"))
        return (levels.lower - levels.upper * (2 + self.noises[-1])) ** 2


class Upper(Problem):
    def loss(self, levels, batch, draws):
        return (levels.lower - 3) ** 2


def engine_of(solver, gaussian, where, first, seed=3):
    lower, upper = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (1.0, 0.5))
    below = Lower("lower", lower, optimizer=torch.optim.SGD([lower], 0.1), data=BATCHES, solver=solver)
    below.gaussian, below.where, below.first, below.noises = gaussian, where, first, []
    above = Upper("upper", upper, optimizer=torch.optim.SGD([upper], 0.1), data=BATCHES)
    return Engine(Graph(below, above), seed=seed, check=False)


def by_hand(gaussian, where, first, seed=3, steps=6):
    """Both weights after each step, and the noise of each: the engine's stream is one seeded generator."""
    lower, upper, seen = 1.0, 0.5, []
    np.random.seed(seed)
    random.seed(seed)
    for step in range(steps):
        draws = float(BATCHES[step % 3]) >= first
        noise = sum(float(gaussian()) for _ in range(3)) if draws else 0.0
        lower -= 0.1 * 2 * (lower - upper * (2 + noise))
        # d/du (d loss / d lower) = -2 (2 + noise)
        upper -= 0.1 * 2 * (2 + noise) * 2 * (lower - 3)
        seen.append((lower, upper, noise))
    return seen


@pytest.mark.parametrize("first", [0, 1], ids=["every batch", "from the second batch on"])
@pytest.mark.parametrize("where", ["draw", "loss"])
@pytest.mark.parametrize("kind", GAUSSIANS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_odd_number_of_gaussians_is_replayed(solver, kind, where, first):
    engine = engine_of(SOLVERS[solver], GAUSSIANS[kind], where, first)
    expected = by_hand(GAUSSIANS[kind], where, first)
    problem = engine.graph.problems["lower"]
    for lower, upper, noise in expected:
        problem.noises.clear()
        np.random.seed(0)  # what is around a step has a Gaussian kept, too
        np.random.standard_normal()
        random.gauss(0, 1)
        engine.run(1)
        # the update, and whatever its solve evaluates again
        assert problem.noises == [noise] * len(problem.noises)
        assert len(problem.noises) >= 2
        found = [engine.graph.problems[name].module.value.item() for name in ("lower", "upper")]
        assert found == pytest.approx([lower, upper], rel=1e-9)


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_the_generators_around_a_step_keep_their_gaussian(kind):
    gaussian = GAUSSIANS[kind]
    engine = engine_of(SOLVERS["forward"], gaussian, "loss", 0)
    np.random.seed(1)
    random.seed(1)
    expected = [float(gaussian()) for _ in range(4)]
    np.random.seed(1)
    random.seed(1)
    found = []
    for _ in range(4):
        found.append(float(gaussian()))
        engine.run(1)
        engine.hypergradient("upper")
    assert found == expected


@pytest.mark.parametrize("direct", [True, False])
def test_numpys_state_is_what_numpy_says(direct, monkeypatch):
    if not direct:  # another layout than the one known, or another source of bits
        monkeypatch.setattr(numpy_states, "_memory", lambda: None)
    np.random.seed(7)
    for count in (0, 1, 3, 700):
        np.random.standard_normal(count)
        state = numpy_states.numpy_state()
        assert all(np.array_equal(*pair) for pair in zip(state, np.random.get_state(), strict=True))
        after = np.random.standard_normal(5)
        np.random.random(1000)
        numpy_states.set_numpy_state(state)
        assert all(np.array_equal(*pair) for pair in zip(state, np.random.get_state(), strict=True))
        assert np.array_equal(np.random.standard_normal(5), after)


def test_this_numpy_is_read_where_it_lies():
    assert numpy_states._memory() is not None


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_a_seeded_state_is_that_after_seeding(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    seeded = RandomState.seeded(seed)
    assert RandomState.capture().equals(seeded)
    torch.rand(3), np.random.rand(3), random.random()
    expected = [torch.rand(3), np.random.rand(3), random.random()]
    with seeded.active():
        torch.rand(3), np.random.rand(3), random.random()
        found = [torch.rand(3), np.random.rand(3), random.random()]
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
