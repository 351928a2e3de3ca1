"""Tests by experiment what hypergradients are worth: moves the top level along them, trains the levels below further
with the top level held, and measures the upper loss.

A direction is right at a horizon of N outer steps if the loss after N steps rises along it, so that a step against it
lowers the loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.errors import GraphError, NotFiniteError
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.recorded_batch import RecordedBatch, RecordedBatches
from multilevel.problems.hypergradient import mean_values
from multilevel.problems.rehearsal import Rehearsed, unchanged, updates_recorded
from multilevel.problems.replay_results import LOSS, Replay, ReplayRow, Slope
from multilevel.solvers import MultilevelError, Solver
from multilevel.solvers.ranges import require
from multilevel.solvers.unrolled import UnrolledSolver
from multilevel.solvers.vectors import flatten, unflatten

#: Draws in a replay from a moved point: those of the unmoved network, or new ones from the same noise.
DRAWS = ("held", "renewed")
RANDOM = "random direction"
HALVES, SIGNS = (0, 1), (1, -1)
#: The attributes of a slope.
Values = dict[str, list[float]]
#: A direction: the solver that gave it, and which half of its hypergradients.
Name = tuple[str, int]
#: The place of a slope in the results: (solver, outer steps, draws, measure).
Place = tuple[str, int, str, str]


@dataclass
class ReplaySettings:
    """How to replay.

    Args:
        outer_steps: numbers of further outer steps after which to measure.
        steps: outer steps to take hypergradients in, an even number; the mean of each half gives a direction.
        size: length of the larger step, as a share of the norm of the top level's variables; the other is half of it.
        seeds: replays of each direction, with other batches and draws.
        held_out: batches of the top level's data that the upper loss is measured on.
        draws: held (those of the unmoved network), renewed (drawn again from the same noise), or both.
        control: replay two random directions, too, to compare with.

    Examples:
        >>> ReplaySettings([8, 1], steps=2).outer_steps
        [1, 8]
    """

    outer_steps: Sequence[int] = (1, 8, 32)
    steps: int = 24
    size: float = 0.02
    seeds: int = 3
    held_out: int = 4
    draws: Sequence[str] = DRAWS
    control: bool = True

    def __post_init__(self) -> None:
        """Raise SettingError for an unusable value."""
        self.outer_steps = sorted(set(self.outer_steps))
        require("outer_steps", self.outer_steps, min(self.outer_steps, default=0) >= 1, "numbers of at least 1")
        require("steps", self.steps, self.steps >= 2 and self.steps % 2 == 0, "an even number of at least 2")
        require("size", self.size, 0 < self.size < 1, "a share between 0 and 1")
        require("seeds", self.seeds, self.seeds >= 1, "at least 1")
        require("held_out", self.held_out, self.held_out >= 1, "at least 1")
        known = bool(self.draws) and all(kind in DRAWS for kind in self.draws)
        require("draws", self.draws, known, f"a list of {', '.join(DRAWS)}")


@dataclass
class Experiment:
    """A replay of an engine, which is afterwards as before, bit for bit.

    Args:
        engine: its levels are at the point to start from.
        settings: how to replay.
        solvers: for each label, the solver of each level that the hypergradient passes through.
        measures: other numbers to measure after each replay, by name.
        advanced: called after every outer step.

    Raises:
        GraphError: the top level has a plain gradient, or the levels below have learning rates of 0.
    """

    engine: Rehearsed
    settings: ReplaySettings
    solvers: Mapping[str, Mapping[str, Solver]]
    measures: Mapping[str, Callable[[], float]] = field(default_factory=dict)
    advanced: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        top = self.engine.graph.top
        if not self.engine.graph.passes(top):
            raise GraphError(f"the top level {top!r} has a plain gradient: there is nothing to replay")
        passes = self.engine.graph.passes(top)
        complete = bool(self.solvers) and all(set(passes) <= set(row) for row in self.solvers.values())
        require("solvers", self.solvers, complete, f"for each label, a solver of each of {', '.join(passes)}")
        require("measures", list(self.measures), LOSS not in self.measures, f"other names than {LOSS!r}")
        optimizers = [self.engine.graph.problems[level].optimizer for level in passes]
        rates = [float(group["lr"]) for each in optimizers if each is not None for group in each.param_groups]
        if None not in optimizers and not any(rates):
            raise GraphError(
                "the learning rates of the levels below are 0, as at the end of a cosine schedule, so no step would "
                "change anything: replay from an earlier point of the run"
            )
        self.top = self.engine.graph.problems[top]
        self.problems: dict[str, str] = {}
        self.directions: dict[Name, Tensor] = {}
        self.slopes: dict[Place, tuple[Values, Values]] = {}

    @property
    def outer_steps(self) -> int:
        """The number of outer steps that the replay makes, if no solver fails."""
        directions = len(HALVES) * (len(self.solvers) + self.settings.control)
        trials = directions * len(SIGNS) * 2 * len(self.settings.draws)
        return self._before + self.settings.steps + self.settings.seeds * self._horizon * (1 + trials)

    @property
    def _horizon(self) -> int:
        return max(self.settings.outer_steps)

    @property
    def _before(self) -> int:
        """Outer steps before the first hypergradient, on which solvers look back."""
        return max(solver.recorded_outer_steps for row in self.solvers.values() for solver in row.values()) - 1

    def run(self) -> Replay:
        """Make the experiment.

        Raises:
            NotFiniteError: the loss of a level is not finite.
        """
        with unchanged(self.engine):
            with updates_recorded(self.engine, self._before + 1):
                self._find_directions()
            self.parts = self._held_out_parts()
            for seed in range(self.settings.seeds):
                self._replay(seed)
        rows = [ReplayRow(*place, (Slope(**first), Slope(**second))) for place, (first, second) in self.slopes.items()]
        return Replay(rows, self.problems, self.settings.size)

    def _advance(self) -> None:
        """An outer step with the top level held."""
        self.engine.advance()
        skipped = [name for name, count in self.engine.skipped.items() if count]
        if skipped:
            raise NotFiniteError(f"an update of level {skipped[0]!r} was skipped in a replay: its loss is not finite")
        self.advanced()

    def _find_directions(self) -> None:
        """The mean hypergradients of each solver in both halves of the steps, of length 1."""
        totals: dict[Name, Tensor] = {}
        for _ in range(self._before):
            self._advance()
        for step in range(self.settings.steps):
            self._advance()
            for label, solvers in self.solvers.items():
                if label not in self.problems and (vector := self._hypergradient(label, solvers)) is not None:
                    name = (label, 2 * step // self.settings.steps)
                    totals[name] = totals.get(name, 0) + vector
        generator = torch.Generator().manual_seed(0)
        for half in HALVES if self.settings.control else ():
            size = sum(variable.numel() for variable in self.top.variables().values())
            totals[RANDOM, half] = torch.randn(size, generator=generator, dtype=torch.float64)
        for (label, half), total in totals.items():
            if label in self.problems:
                continue
            if not total.norm() > 0:
                self.problems[label] = "its hypergradients are 0"
                continue
            self.directions[label, half] = total / total.norm()

    def _hypergradient(
        self, label: str, solvers: Mapping[str, Solver], record: RecordedBatches | None = None
    ) -> Tensor | None:
        """A solver's hypergradient as a float64 vector on the CPU; None if the solver failed, which is noted."""
        try:
            hypergradient = self.engine.solve_hypergradient(self.top.name, solvers, record=record)
        except MultilevelError as error:
            self.problems[label] = " ".join(str(error).split())
            return None
        return flatten(hypergradient.values).double().cpu()

    def _held_out_parts(self) -> list[tuple[RandomState, RecordedBatch]]:
        """The next batches of the top level, each with the generators' state before its draws."""
        parts = []
        for _ in range(self.settings.held_out * self.top.accumulate):
            state = self.engine.updates.random
            (part,) = self.engine.updates.next_record(self.top, 1)
            parts.append((state, part))
        return parts

    def _replay(self, seed: int) -> None:
        """Measure the slopes along all directions with the batches and draws of one seed."""
        start = RandomState.seeded(replicas.rank_seed(f"replay/{seed}", seed))
        script: list[tuple[str, RecordedBatch]] = []
        with unchanged(self.engine), updates_recorded(self.engine, self._horizon), recorded_to(self.engine, script):
            self.engine.updates.random = start
            predictions = dict(self._predictions())
        for draws in self.settings.draws:
            for name, direction in self.directions.items():
                self._measure(name, direction, draws, start, script)
                for count in self.settings.outer_steps:
                    if name[0] != RANDOM:
                        self._keep(name, (count, draws, LOSS), "predicted", predictions[name, count])
        for level, count in Counter(level for level, _ in script).items():  # other batches for the next seed
            for _ in range(count):
                self.engine.graph.batches[level].next()

    def _predictions(self) -> Iterator[tuple[tuple[Name, int], float]]:
        """Train from the unmoved point; after each of ``outer_steps``, the slope along each direction that its own
        solver predicts there, through as many outer steps if it unrolls."""
        record = tuple(part for _, part in self.parts)
        for count in range(1, self._horizon + 1):
            self._advance()
            if count not in self.settings.outer_steps:
                continue
            for label, solvers in self.solvers.items():
                if (label, 0) not in self.directions:
                    continue
                looking = {level: looking_back(solver, count) for level, solver in solvers.items()}
                vector = self._hypergradient(label, looking, record)
                for half in HALVES:
                    value = float("nan") if vector is None else vector.dot(self.directions[label, half]).item()
                    yield ((label, half), count), value

    def _measure(
        self, name: Name, direction: Tensor, draws: str, start: RandomState, script: Sequence[tuple[str, RecordedBatch]]
    ) -> None:
        """Keep the slopes along a direction by central differences, with both steps."""
        norm = flatten(self.top.variables()).detach().double().norm().item() or 1.0
        for kind, size in (("measured", self.settings.size), ("halved", self.settings.size / 2)):
            ahead, behind = (list(self._trial(sign * size * norm * direction, draws, start, script)) for sign in SIGNS)
            for (count, values), (_, others) in zip(ahead, behind, strict=True):
                for measure, value in values.items():
                    slope = (value - others[measure]) / (2 * size * norm)
                    self._keep(name, (count, draws, measure), kind, slope)

    def _keep(self, name: Name, place: tuple[int, str, str], kind: str, slope: float) -> None:
        solver, half = name
        halves = self.slopes.setdefault((solver, *place), ({}, {}))
        halves[half].setdefault(kind, []).append(slope)

    def _trial(
        self, move: Tensor, draws: str, start: RandomState, script: Sequence[tuple[str, RecordedBatch]]
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Train from the point moved by a vector; yield every measure after each of ``outer_steps``."""
        held = draws == "held"
        with unchanged(self.engine), replayed_from(self.engine, script if held else None):
            self.engine.updates.random = start
            variables = self.top.variables()
            with torch.no_grad():
                for variable, step in zip(variables.values(), unflatten(move, variables).values(), strict=True):
                    variable.add_(step)
            for count in range(1, self._horizon + 1):
                self._advance()
                if count in self.settings.outer_steps:
                    values = {LOSS: self._upper_loss(held)}
                    yield count, values | {measure: compute() for measure, compute in self.measures.items()}

    def _upper_loss(self, held: bool) -> float:
        """The mean upper loss on the held-out batches."""
        evaluator = self.engine.evaluator
        losses: list[tuple[float, dict[str, float]]] = []
        for state, recorded in self.parts:
            part = recorded
            if not held:
                with state.active():
                    part = evaluator.record(self.top.name, recorded.batch)
            with part.state.active():
                losses.append((evaluator.loss(self.top.name, part, {})[0].item(), {}))
        return mean_values(losses)[0]


def looking_back(solver: Solver, outer_steps: int) -> Solver:
    """The solver, through ``outer_steps`` outer steps if it unrolls."""
    if not isinstance(solver, UnrolledSolver):
        return solver
    return replace(solver, steps=None, outer_steps=outer_steps)


@contextmanager
def recorded_to(engine: Rehearsed, script: list[tuple[str, RecordedBatch]]) -> Iterator[None]:
    """A block in which every batch that an update draws for is also appended to ``script``, with its level."""

    def record(name: str, batch: Any, state: RandomState | None = None) -> RecordedBatch:
        part = engine.evaluator.record(name, batch, state)
        script.append((name, part))
        return part

    with _recorder(engine, record):
        yield


@contextmanager
def replayed_from(engine: Rehearsed, script: Sequence[tuple[str, RecordedBatch]] | None) -> Iterator[None]:
    """A block in which updates take the batches and draws of ``script`` in order; None: their own."""
    if script is None:
        yield
        return
    remaining = iter(script)

    def record(name: str, batch: Any, state: RandomState | None = None) -> RecordedBatch:
        level, part = next(remaining)
        assert level == name
        part.state.restore()
        return part

    with _recorder(engine, record):
        yield


@contextmanager
def _recorder(engine: Rehearsed, record: Callable[..., RecordedBatch]) -> Iterator[None]:
    before, engine.updates.recorder = engine.updates.recorder, record
    try:
        yield
    finally:
        engine.updates.recorder = before
