"""Performs one update of one level, from its batch to its optimizer's step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.batches import first_rows
from multilevel.problems.callbacks import Update
from multilevel.problems.discovery import Discovery
from multilevel.problems.errors import NotFiniteError
from multilevel.problems.evaluation.compilation import as_written
from multilevel.problems.evaluation.evaluator import Evaluator, check_finite
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.recorded_batch import RecordedBatch, RecordedBatches, Values
from multilevel.problems.graph import Graph
from multilevel.problems.history import LevelHistory
from multilevel.problems.hypergradient import (
    Gradients,
    Hypergradient,
    Total,
    adjoint_pass,
    differentiable_variables,
    differentiated,
    mean_gradient,
    mean_values,
)
from multilevel.problems.lower_levels import SolverViews
from multilevel.problems.problem import Problem
from multilevel.problems.recording import begun, buffers_of, memory, recorded_count, recorded_step
from multilevel.problems.self_check import SelfCheck
from multilevel.problems.stepping import set_gradient, take_step
from multilevel.problems.unrolled_pass import unrolled_pass, unrolled_together
from multilevel.solvers import Solver
from multilevel.solvers.gradients import added, filled, gradients, grouped, keyed
from multilevel.solvers.vectors import Tensors, flatten


class Updates:
    """Performs updates of a graph's levels, each along the level's hypergradient.

    Args:
        graph: the levels.
        evaluator: evaluates their losses.
        random: the initial state of the generators for all draws.
        check: compare the products of each level's first hypergradient, see ``SelfCheck``; a difference becomes a
            line in ``evaluator.notices``.

    Attributes:
        histories: the history of each level.
        random: the generators' state after the last update.
        recorder: draws for the batches of updates, as ``Evaluator.record`` does.
    """

    def __init__(self, graph: Graph, evaluator: Evaluator, random: RandomState, check: bool) -> None:
        self.graph = graph
        self.evaluator = evaluator
        self.recorder: Callable[[str, Any, RandomState | None], RecordedBatch] = evaluator.record
        self.random = random
        self.check = check
        self.histories = {name: LevelHistory() for name in graph.names}
        self._discovery = Discovery(graph, evaluator)
        self._self_check = SelfCheck()
        self._noted_memory = False

    def take(self, problem: Problem, step: int, observed: bool, recorded_steps: int = 0) -> Update:
        """Update a level once.

        Args:
            problem: the level.
            step: updates of the top level so far.
            observed: whether callbacks receive the update; otherwise its metrics and its cosine are omitted.
            recorded_steps: last updates of the level to record, where its solver does not ask for more.

        Raises:
            NotFiniteError: its loss or its hypergradient is not finite; then only batches, buffers and the update's
                record have changed.
            CotangentError: the cotangent at a level below is not finite.
        """
        name, history = problem.name, self.histories[problem.name]
        ranks = replicas.count()
        recorded = recorded_count(problem, recorded_steps) if name in self.graph.passed else 0
        observed = observed or ranks > 1  # any rank may have callbacks
        inputs = differentiable_variables(self.evaluator, differentiated(self.graph, name))
        parts: list[RecordedBatch] = []
        buffers: list[Values] = []
        values: list[tuple[float, dict[str, float]]] = []
        total: Total = {}
        state = self.random

        batches = [self.graph.batches[name].next() for _ in range(problem.accumulate)]
        with nullcontext() if self.evaluator.compilation else as_written():
            # The loss of each batch and its gradient, in the level's own variables and in those that respond to them.
            with state.active():
                for batch in batches:
                    part = self.recorder(name, batch, state)
                    if recorded:
                        buffers.append(buffers_of(self.graph, problem, buffers))
                    evaluation, inputs = self._discovery.evaluate(name, part, inputs, observed)
                    if ranks > 1:
                        check_finite(name, replicas.mean([evaluation.loss.detach()])[0].item())
                    evaluation.move_buffers(name)
                    total = added(total, gradients(evaluation.loss, keyed(inputs)))
                    parts.append(part)
                    values.append((evaluation.value, evaluation.metrics))
                    del evaluation
                    state = RandomState.capture()
            self.random = state
            history.record = tuple(parts)
            total = mean_gradient(total, len(parts), inputs)

            # The response of the levels below.
            hypergradient = self.respond(name, grouped(filled(total, keyed(inputs)), inputs), self.evaluator)

        # The optimizer's step.
        loss, metrics = mean_values(values) if ranks * len(parts) > 1 else values[0]
        norm = set_gradient(problem, _used(name, hypergradient.values, total))
        counts = problem.solver is not None and problem.solver.counted_outer_steps and problem.clip_norm is None
        history.gradient = hypergradient.values if counts else None
        if hypergradient.solutions:
            history.solutions = dict(hypergradient.solutions)
        self._step(problem, recorded, buffers, loss)
        if not hypergradient.reports:
            return Update(name, step, loss, metrics, norm)
        before, history.hypergradient = history.hypergradient, hypergradient.values
        angle = cosine(before, hypergradient.values) if observed and before is not None else None
        return Update(name, step, loss, metrics, norm, hypergradient.reports, angle)

    def begin_outer_step(self, kept: int) -> None:
        """Count an update of the top level, and forget updates before the last ``kept`` of these, unless a level's
        solver needs them."""
        for name, history in self.histories.items():
            history.begin_outer_step(max(kept, self.outer_steps_of(name)))

    def outer_steps_of(self, name: str) -> int:
        """The number of the top level's last updates over which a level's solver looks back."""
        solver = self.graph.problems[name].solver
        return 1 if solver is None or name not in self.graph.passed else solver.recorded_outer_steps

    def note_memory(self) -> None:
        """After the second update of the top level, when optimizers have their states, note the memory for the records
        of several, if a solver needs these."""
        if self._noted_memory or next(iter(self.histories.values())).outer_step < 2:
            return
        self._noted_memory = True
        kept = {name: count for name in self.histories if (count := self.outer_steps_of(name)) > 1}
        if not kept:
            return
        needed = sum(count * memory(self.histories[name].within(1)) for name, count in kept.items()) / 2**20
        settings = ", ".join(f"levels.{name}.solver.outer_steps={count}" for name, count in kept.items())
        self.evaluator.notices.append(
            f"the records of updates for {settings} take about {needed:.3g} MiB, and about as much in checkpoints"
        )

    def begin(self, problem: Problem, recorded_steps: int = 0) -> None:
        """Call the level's ``begin``, and note what it resets if its updates are recorded."""
        if not problem.starts_anew:
            return
        if recorded_count(problem, recorded_steps):
            self.histories[problem.name].restarted |= begun(problem)
        else:
            problem.begin()

    def next_record(self, problem: Problem, count: int | None = None) -> RecordedBatches:
        """The level's next ``count`` batches with their draws; None: as many as an update takes."""
        with self.random.active():
            batches = (self.graph.batches[problem.name].next() for _ in range(count or problem.accumulate))
            parts = tuple(self.recorder(problem.name, batch, None) for batch in batches)
            self.random = RandomState.capture()
        return parts

    def direct_gradient(self, name: str, evaluator: Evaluator, record: RecordedBatches | None = None) -> Gradients:
        """The direct gradient of a level's loss on a record, None for that of its last update, in its own variables and
        in those that respond to them; nothing changes."""
        record = self.record_of(name) if record is None else record
        inputs = differentiable_variables(evaluator, differentiated(self.graph, name))
        total: Total = {}
        for part in record:
            with part.state.active():
                total = added(total, gradients(evaluator.loss(name, part, inputs)[0], keyed(inputs)))
        return grouped(filled(mean_gradient(total, len(record), inputs), keyed(inputs)), inputs)

    def respond(
        self,
        name: str,
        direct: Gradients,
        evaluator: Evaluator,
        solvers: Mapping[str, Solver] | None = None,
        whole: bool = False,
    ) -> Hypergradient:
        """The hypergradient of a level from its direct gradient, see ``adjoint_pass``.

        Args:
            name: the level.
            direct: the direct gradient of its loss.
            evaluator: evaluates the losses.
            solvers: solvers of the levels that the hypergradient passes through; None takes their own.
            whole: use whole batches regardless of ``solve_share``.
        """
        graph, histories = self.graph, self.histories
        passes = graph.passes(name)
        if not passes:
            return Hypergradient(direct[name], {}, {})
        record_of = self.record_of if whole else self._solved_record
        records = {level: record_of(level) for level in passes}
        starts = {} if solvers else histories[name].solutions  # another solver starts from nothing
        unchecked = self.check and not solvers and evaluator is self.evaluator and name not in self._self_check.names

        def check(level: str, cotangent: Tensors) -> None:
            choice = histories[level].products
            if line := self._self_check.compare(graph, evaluator, name, level, records[level], cotangent, choice):
                evaluator.notices.append(line)

        observe = check if unchecked else None
        if not solvers:  # the graph has checked that each level has one
            solvers = {level: solver for level in passes if (solver := graph.problems[level].solver) is not None}
        views = SolverViews(graph, evaluator, records, histories, solvers, starts)
        together = unrolled_together(graph, name, solvers)
        try:
            with as_written():
                if together:
                    return unrolled_pass(views, together, name, direct, observe)
                return adjoint_pass(views, name, direct, observe)
        except torch.linalg.LinAlgError as error:
            raise NotFiniteError(f"a solve for level {name!r} met values that are not finite: {error}") from error

    def record_of(self, name: str) -> RecordedBatches:
        """The record of a level's last update; before the first, its first batch, which is not consumed."""
        record = self.histories[name].record
        if record is not None:
            return record
        with self.random.active():
            return (self.evaluator.record(name, self.graph.batches[name].peek()),)

    def _solved_record(self, name: str) -> RecordedBatches:
        """The record for solves at a level."""
        record, share = self.record_of(name), self.graph.problems[name].solve_share
        if share == 1:
            return record
        with record[0].state.active():  # every solve at this point draws the same
            return tuple(self.evaluator.record(name, first_rows(part.batch, share, name)) for part in record)

    def _step(self, problem: Problem, count: int, buffers: list[Values], loss: float) -> None:
        """Take the optimizer's step and record it among the last ``count`` steps; 0 records nothing."""
        if not count:
            take_step(problem, loss)
            return
        history = self.histories[problem.name]
        if history.updates.maxlen != count:
            history.updates = deque(history.updates, maxlen=count)
        assert history.record is not None
        update = recorded_step(self.graph, problem, history.record, buffers, history.updates, loss)
        positions = [past.updates[-1].step.position for past in self.histories.values() if past.updates]
        step = replace(update.step, position=max(positions, default=0) + 1, restarted=history.restarted)
        history.updates.append(replace(update, step=step, outer_step=history.outer_step))
        history.restarted = frozenset()


def _used(name: str, values: Tensors, direct: Total) -> dict[str, Tensor]:
    """A hypergradient without the variables that nothing depends on, which the optimizer must not touch."""
    unused = [key for key in values if direct[name, key] is None]
    if not unused:
        return dict(values)
    reached = torch.stack([values[key].any() for key in unused])
    if reached.all().item():
        return dict(values)
    unreached = {key for key, is_reached in zip(unused, reached.tolist(), strict=True) if not is_reached}
    return {key: value for key, value in values.items() if key not in unreached}


def cosine(before: Tensors, after: Tensors) -> float:
    """The cosine between two hypergradients."""
    return torch.nn.functional.cosine_similarity(flatten(before), flatten(after), dim=0).item()
