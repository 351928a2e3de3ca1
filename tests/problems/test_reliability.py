"""Reliability is that of hypergradients whose mean, training noise and held-out noise are known."""

import math
from statistics import fmean, stdev

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from multilevel import Engine, Graph, Problem
from multilevel.problems import measure_reliability
from multilevel.problems.hypergradient_noise import Halves, block_jackknife, decompose, inner_products, noise_cosine
from multilevel.problems.reliability import reliability_of, split
from multilevel.solvers import ConjugateGradient, DataError, Identity, SettingError, Unrolled

SIGNAL, TRAINING, HELD_OUT = 1.0, 3.0, 256.0  # |mu|^2, T, V
EXAMPLES = 64
SHARES = (SIGNAL / 8, TRAINING / 8, HELD_OUT / EXAMPLES / 8)  # of E|h|^2 = 8


def drawn(repetition, steps=24, size=20, signal=SIGNAL, training=TRAINING, correlation=0.0, first=EXAMPLES // 2):
    """Hypergradients of ``steps`` steps, of which training's noise is an autoregressive series, and their halves."""
    generator = torch.Generator().manual_seed(repetition)
    noise = torch.randn(steps, 3, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
    mean = torch.full((size,), math.sqrt(signal / size), dtype=torch.float64)
    series = noise[:, 0] * math.sqrt(training)
    for step in range(1, steps):
        series[step] = correlation * series[step - 1] + math.sqrt(1 - correlation**2) * series[step]
    rows = (first, EXAMPLES - first)
    halves = [mean + series + noise[:, 1 + i] * math.sqrt(HELD_OUT / rows[i]) for i in range(2)]
    whole = (rows[0] * halves[0] + rows[1] * halves[1]) / EXAMPLES
    pairs = [Halves.of(*both, (1 / EXAMPLES, 1 / rows[0], 1 / rows[1])) for both in zip(*halves, strict=True)]
    return whole, pairs


@pytest.mark.parametrize("first", [32, 16])
def test_shares_are_those_of_the_noise_on_average(first):
    results = [decompose(*drawn(seed, first=first)) for seed in range(200)]
    # 4 standard errors over the repetitions
    assert fmean(result.signal.value for result in results) == pytest.approx(SHARES[0], abs=0.012)
    assert fmean(result.training for result in results) == pytest.approx(SHARES[1], abs=0.016)
    assert fmean(result.held_out for result in results) == pytest.approx(SHARES[2], abs=0.009)
    covered = fmean(result.signal.low <= SHARES[0] <= result.signal.high for result in results)
    assert covered >= 0.93
    spread = stdev(result.signal.value for result in results)
    assert fmean(result.signal.high - result.signal.value for result in results) < 3 * spread  # Student's t gives 2.4
    assert all(result.examples == EXAMPLES for result in results)


def test_correlations_of_successive_steps_hardly_count_as_signal():
    products, signals = [], []
    for seed in range(200):
        hypergradients, pairs = drawn(seed, correlation=0.5)
        gram = inner_products(hypergradients)
        products.append(((gram.sum() - gram.trace()) / (24 * 23) / (gram.trace() / 24)).item())
        signals.append(decompose(hypergradients, pairs).signal.value)
    assert fmean(products) > SHARES[0] + 0.025  # all pairs of steps
    assert fmean(signals) < SHARES[0] + 0.015


def test_cosines_are_those_of_torch():
    hypergradients, pairs = drawn(0)
    expected = [
        F.cosine_similarity(vector, (hypergradients.sum(0) - vector) / 23, dim=0).item() for vector in hypergradients
    ]
    assert noise_cosine(inner_products(hypergradients)).value == pytest.approx(fmean(expected), rel=1e-12)
    result = decompose(hypergradients, pairs)
    assert result.noise.value == pytest.approx(fmean(expected), rel=1e-12)
    assert result.halves.value == fmean(pair.cosine for pair in pairs)
    first, second = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pair = Halves.of(first, second, (1, 2, 2))
    assert pair.cosine == pytest.approx(F.cosine_similarity(first, second, dim=0).item(), rel=1e-12)
    assert pair.distance == pytest.approx(F.mse_loss(first, second, reduction="sum").item(), rel=1e-12)


def test_cosines_of_hypergradients_that_are_zero_are_zero():
    zero = torch.zeros(6, 3)
    result = decompose(zero, [Halves.of(*zero[:2], (1, 2, 2))] * 6)
    assert (result.noise.value, result.halves.value, result.signal.value) == (0, 0, 0)
    assert result.cosine is None


@pytest.mark.parametrize("steps", [4, 7])
def test_the_jackknife_of_a_mean_is_its_standard_error(steps):
    values = torch.randn(steps, generator=torch.Generator().manual_seed(1)).tolist()
    estimate = block_jackknife(lambda kept: fmean(values[step] for step in kept), steps)
    width = stats.t.ppf(0.975, steps - 1) * stdev(values) / math.sqrt(steps)
    assert estimate.value == fmean(values)
    assert estimate.high - estimate.value == pytest.approx(width, rel=0.04)  # of the expansion of the quantile
    assert estimate.value - estimate.low == pytest.approx(estimate.high - estimate.value)


def test_the_jackknife_covers_the_mean_of_correlated_values():
    def interval(seed):
        generator = torch.Generator().manual_seed(seed)
        series = torch.randn(64, generator=generator).tolist()
        for step in range(1, 64):
            series[step] = 0.5 * series[step - 1] + math.sqrt(0.75) * series[step]
        return block_jackknife(lambda kept: fmean(series[step] for step in kept), 64), series

    results = [interval(seed) for seed in range(300)]
    covered = fmean(estimate.low <= 0 <= estimate.high for estimate, _ in results)
    independent = fmean(abs(fmean(series)) <= 2 * stdev(series) / 8 for _, series in results)
    assert independent < 0.8  # as if the values were independent
    assert covered > 0.87


def test_the_needed_number_of_examples_reaches_the_cosine():
    result = decompose(*drawn(3, steps=300, size=400))
    for cosine in (0.4, 0.45):
        count = result.needed(cosine)
        assert count == pytest.approx(HELD_OUT / (SIGNAL * (1 / cosine**2 - 1) - TRAINING), rel=0.3)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2000, 400, generator=generator) / 20 * math.sqrt(TRAINING + HELD_OUT / count)
        single = noise + math.sqrt(SIGNAL) / 20
        assert F.cosine_similarity(single, torch.ones(1, 400)).mean().item() == pytest.approx(cosine, abs=0.02)
    assert result.limit == pytest.approx(math.sqrt(SIGNAL / (SIGNAL + TRAINING)), abs=0.02)
    assert result.cosine == pytest.approx(math.sqrt(SHARES[0]), abs=0.02)


def test_no_number_of_examples_reaches_a_cosine_above_the_limit():
    result = decompose(*drawn(3, steps=300, size=400))
    assert result.limit < 0.8
    assert result.needed(0.8) is None
    assert "no number for 0.8" in str(result)
    assert result.figures()["needed"]["0.8"] is None


def test_no_signal_gives_no_number():
    results = [decompose(*drawn(seed, signal=0.0)) for seed in range(20)]
    assert sum(result.signal.value > 0 for result in results) > 3
    assert all(result.cosine is None is result.limit for result in results)
    result = results[0]
    assert result.needed(0.01) is None
    assert str(result).endswith("the mean cannot be told from 0 with 24 steps")


class Follow(Problem):
    """A weight that one step brings to its target and the batch's noise."""

    def loss(self, levels, batch, draws):
        return (levels.weight - levels.target - batch).square().sum() / 2


class Center(Problem):
    def loss(self, levels, batch, draws):
        return (levels.weight - batch[0]).square().sum(1).mean() / 2


SIZE = 400


def vectors(count, seed):
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def toy_engine(steps=100, examples=(7, 8), solver=None, **keywords):
    """An engine whose hypergradient is target + training's noise - mean of the held-out batch: T = 400, V = 9 * 400."""
    weight, target = nn.Parameter(torch.zeros(SIZE).double()), nn.Parameter(torch.ones(SIZE).double())
    noise = list(vectors(steps, 1))
    held_out = [(3 * vectors(examples[step % 2], 10 + step), torch.tensor(5)) for step in range(steps)]
    optimizer = torch.optim.SGD([weight], 1.0)
    follow = Follow("weight", weight, optimizer=optimizer, data=noise, solver=solver or Identity())
    top = torch.optim.SGD([target], 0.1)
    return Engine(Graph(follow, Center("target", target, optimizer=top, data=held_out, **keywords))), noise, held_out


def test_reliability_of_an_engine_whose_noise_is_known():
    result = measure_reliability(toy_engine()[0], 100)
    size = 1 + 1 + 9 * (1 / 7 + 1 / 8) / 2  # of |mu|^2, T and V/B, in units of 400
    assert result.signal.value == pytest.approx(1 / size, abs=0.01)
    assert result.training == pytest.approx(1 / size, abs=0.01)
    assert result.held_out == pytest.approx(1 - 2 / size, abs=0.01)
    assert result.examples == pytest.approx(2 / (1 / 7 + 1 / 8))
    assert result.needed(0.5) == pytest.approx(9 / (3 - 1), abs=1)
    assert result.limit == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_hypergradients_are_those_of_training_with_the_top_level_held():
    (engine, noise, held_out), (plain, _, _) = toy_engine(), toy_engine()
    solved = []

    def solve(record):
        solved.append(engine.solve_hypergradient("target", record=record))
        return solved[-1]

    before = weights(engine)
    result = reliability_of(engine, 12, solve)
    for step in range(12):
        plain.advance()
        whole, first, second = (hypergradient.values["value"] for hypergradient in solved[3 * step :][:3])
        assert torch.equal(whole, plain.hypergradient("target")["value"])
        batch = held_out[step][0]
        middle = len(batch) // 2
        for found, rows in ((whole, batch), (first, batch[:middle]), (second, batch[middle:])):
            torch.testing.assert_close(found, 1 + noise[step] - rows.mean(0), rtol=1e-12, atol=1e-12)
    expected = noise_cosine(inner_products([hypergradient.values["value"] for hypergradient in solved[::3]]))
    assert result.noise == expected
    assert result.noise.value > 0.5
    torch.testing.assert_close(weights(engine), before, rtol=0, atol=0)
    plain, _, _ = toy_engine()
    for trained in (engine, plain):
        trained.run(3)
    torch.testing.assert_close(weights(engine), weights(plain), rtol=0, atol=0)


def weights(engine):
    return {name: problem.module.value.detach().clone() for name, problem in engine.graph.problems.items()}


def test_other_solvers_get_the_updates_that_they_differentiate():
    engine, _, _ = toy_engine()
    unrolled = measure_reliability(engine, 5, {"weight": Unrolled()})
    exact = measure_reliability(engine, 5, {"weight": ConjugateGradient()})
    assert unrolled.noise.value == pytest.approx(exact.noise.value, rel=1e-12)
    assert engine.recorded_steps == 0


def test_halves_of_several_batches():
    engine, _, held_out = toy_engine(accumulate=2)
    engine.advance()
    records, variances = split(engine, "target", engine.updates.record_of("target"))
    assert [[len(part.batch[0]) for part in record] for record in records] == [[3, 4], [4, 4]]
    assert variances == pytest.approx([(1 / 7 + 1 / 8) / 4, (1 / 3 + 1 / 4) / 4, (1 / 4 + 1 / 4) / 4])
    assert torch.equal(torch.cat([records[0][0].batch[0], records[1][0].batch[0]]), held_out[0][0])


class Drawing(Center):
    def draw(self, levels, batch):
        return torch.randn(2)


@pytest.mark.parametrize("kind", [Drawing, Center])
def test_halves_share_no_draws(kind, monkeypatch):
    engine, _, _ = toy_engine()
    engine.graph.problems["target"].__class__ = kind
    engine.advance()
    record = engine.updates.record_of("target")
    (first,), (second,) = split(engine, "target", record)[0]
    torch.randn(1)
    (again,), _ = split(engine, "target", record)[0]
    assert not torch.equal(first.state.cpu, second.state.cpu)
    assert torch.equal(first.state.cpu, again.state.cpu)  # every solver gets the same halves
    assert torch.equal(engine.updates.next_record(engine.graph.problems["target"])[0].state.cpu, next_state(kind))
    if kind is Drawing:
        assert not torch.equal(first.draws, second.draws)


def next_state(kind):
    engine, _, _ = toy_engine()
    engine.graph.problems["target"].__class__ = kind
    engine.advance()
    return engine.updates.next_record(engine.graph.problems["target"])[0].state.cpu


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(SettingError, match="reliability: got 3; expected at least 4 steps"):
        measure_reliability(toy_engine()[0], 3)
    with pytest.raises(DataError, match=r"level 'target' has 1 row, .* give the level batches of at least 2 rows"):
        measure_reliability(toy_engine(examples=(1, 1))[0], 4)
