"""Measures how much of a single hypergradient is signal, with the top level held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.batches import halves
from multilevel.problems.engine import Engine
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.recorded_batch import RecordedBatch, RecordedBatches
from multilevel.problems.hypergradient import Hypergradient
from multilevel.problems.hypergradient_noise import Halves, Reliability, decompose
from multilevel.problems.rehearsal import unchanged, updates_recorded
from multilevel.solvers import Solver
from multilevel.solvers.ranges import require
from multilevel.solvers.vectors import flatten

#: Fewer hypergradients leave nothing to estimate from.
FEWEST_STEPS = 4


def measure_reliability(engine: Engine, steps: int, solvers: Mapping[str, Solver] | None = None) -> Reliability:
    """How much of the top level's single hypergradient is signal, from those of the next steps of training.

    The levels below train for ``steps`` updates of the top level, which is held. At each, the hypergradient is solved
    three times: on the next held-out batch, and on both halves of it, with separate draws. Afterwards engine and
    data are bit for bit as before.

    Args:
        engine: the engine at the point to measure at.
        steps: number of hypergradients, at least 4; below about 20 the intervals are wide.
        solvers: the solver of each level that the hypergradient passes through; None takes the levels' own.

    Raises:
        SettingError: ``steps`` is below 4.
        DataError: a batch of the top level cannot be split into halves.
        GraphError: a level below has no optimizer.
        DivergedError: as for ``Engine.run``.
        SolveError, NotFiniteError: as for ``Engine.solve_hypergradient``.

    Examples:
        >>> class Center(Problem):  # above the weight of Problem's example, which follows the target
        ...     def loss(self, levels, batch, draws):
        ...         return (levels.weight - batch).square().mean()
        >>> data = [torch.tensor([3.0, 5.0]), torch.tensor([4.0, 7.0])]
        >>> result = measure_reliability(Engine(Graph(follow, Center("target", target, data=data))), steps=8)
        >>> print(result.examples, result.halves)
        2.0 1.00 (1.00 to 1.00)
    """
    outer_steps = max([1, *(solver.recorded_outer_steps for solver in (solvers or {}).values())])
    return reliability_of(engine, steps, partial(engine.solve_hypergradient, engine.graph.top, solvers), outer_steps)


def reliability_of(
    engine: Engine, steps: int, solve: Callable[..., Hypergradient], outer_steps: int = 1
) -> Reliability:
    """``measure_reliability`` with ``solve(record=...)``, which looks back over ``outer_steps``, in place of
    ``Engine.solve_hypergradient``."""
    hypergradients: list[Tensor] = []
    pairs: list[Halves] = []
    for sample in samples(engine, steps, solve, outer_steps):
        hypergradients.append(sample.whole)
        pairs.append(Halves.of(sample.first, sample.second, sample.variances))
    return decompose(hypergradients, pairs)


class Sample(NamedTuple):
    """The hypergradients of one step, as vectors: of a held-out batch, and of its halves; and the ``variances`` of
    ``Halves``."""

    whole: Tensor
    first: Tensor
    second: Tensor
    variances: tuple[float, float, float]


def samples(engine: Engine, steps: int, solve: Callable[..., Hypergradient], outer_steps: int = 1) -> Iterator[Sample]:
    """The hypergradients of successive steps with the top level held; arguments as in ``reliability_of``. After the
    last, the engine is bit for bit as before."""
    require("reliability", steps, steps >= FEWEST_STEPS, f"at least {FEWEST_STEPS} steps")
    name = engine.graph.top
    with unchanged(engine), updates_recorded(engine, outer_steps):
        engine.advance(outer_steps - 1)
        for _ in range(steps):
            engine.advance()
            record = engine.updates.record_of(name)
            (first, second), variances = split(engine, name, record)
            whole, *parts = (_vector(solve(record=part)) for part in (record, first, second))
            yield Sample(whole, parts[0], parts[1], variances)


def split(
    engine: Engine, name: str, record: RecordedBatches
) -> tuple[list[RecordedBatches], tuple[float, float, float]]:
    """Records of the two halves of a level's batches, with separate draws, and the ``variances`` of ``Halves``.

    Raises:
        DataError: a batch has fewer than two rows, or contains something other than tensors of equal length.
    """
    both = list(zip(*(halves(part.batch, name) for part in record), strict=True))
    with engine.updates.random.active():  # from the state that the next update starts from, which does not advance
        records = [tuple(_record(engine, name, batch) for batch, _ in parts) for parts in both]
    rows = [[count for _, count in parts] for parts in both]
    whole, first, second = map(_variance, ([sum(counts) for counts in zip(*rows, strict=True)], *rows))
    return records, (whole, first, second)


def _record(engine: Engine, name: str, batch: Any) -> RecordedBatch:
    """Record a batch from generators with a new seed, so that no two batches share their draws or dropout."""
    with RandomState.seeded(int(torch.randint(2**31, ()))).active():
        return engine.evaluator.record(name, batch)


def _variance(rows: Sequence[int]) -> float:
    """The variance of a mean over parts with these numbers of rows, on every rank, for a variance of 1 for each row."""
    return sum(1 / count for count in rows) / len(rows) ** 2 / replicas.count()


def _vector(hypergradient: Hypergradient) -> Tensor:
    return flatten(hypergradient.values).cpu()
