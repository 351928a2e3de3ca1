"""Engine: the schedule of updates, each along its level's own hypergradient."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.batches import first_rows
from multilevel.problems.callbacks import Callback, Update
from multilevel.problems.discovery import Discovery
from multilevel.problems.errors import DivergedError, GraphError, NotFiniteError
from multilevel.problems.evaluation.compilation import Backend, Compilation
from multilevel.problems.evaluation.evaluator import Evaluator, Part, Record, check_finite
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.graph import Graph
from multilevel.problems.hypergradient import (
    Gradients,
    Hypergradient,
    Memory,
    Total,
    added,
    averaged,
    differentiated,
    filled,
    gradients,
    leaves,
    mean_values,
    respond,
)
from multilevel.problems.problem import Problem
from multilevel.problems.recording import RecordedUpdate, Values, buffers_of, followed, recorded_count, recorded_step
from multilevel.problems.self_check import SelfCheck
from multilevel.problems.tracking import untracked
from multilevel.problems.updates import set_gradient, take_step
from multilevel.solvers import CotangentError, ProductChoice, Solver
from multilevel.solvers.differentiation import differentiating
from multilevel.solvers.vectors import Tensors, flatten


class Engine:
    """Trains the levels of a graph together.

    Args:
        graph: the levels.
        seed: of every draw, of dropout and its like, and of the order of the data; global generators are
            left alone.
        precision: float32 (the parameters' own dtype) or bf16 (autocast).
        callbacks: told of every update.
        max_skipped: updates in a row of one level that may be skipped, as its loss or hypergradient is not finite.
        compile: compile the calls on levels in updates where that is possible, see ``Compilation``: True, or a backend
            of torch.compile. Solves and reference computations run as written.
        check: compare the products of each level's first hypergradient with products formed in another way, and tell
            of a difference above 5%.

    Attributes:
        step: updates of the top level so far.
        skipped: of each level, the updates in a row that were skipped last.

    Raises:
        SettingError: an unknown precision.
        GraphError: see ``Graph.reads``.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        seed: int = 0,
        precision: str = "float32",
        callbacks: Iterable[Callback] = (),
        max_skipped: int = 10,
        compile: bool | Backend = False,
        check: bool = True,
    ) -> None:
        self.graph = graph
        self.seed = seed
        self.evaluator = Evaluator(graph.problems, precision, Compilation.of(compile))
        self.callbacks = list(callbacks)
        self.step = 0
        self.max_skipped = max_skipped
        self.check = check
        self._checked = SelfCheck()
        self.skipped = dict.fromkeys(graph.names, 0)
        self._stopping = False
        self._updated_now: set[str] = set()  # levels with an update in the step that is under way
        self._random = RandomState.seeded(replicas.own_seed(str(seed), seed))
        self._records: dict[str, Record] = {}
        self._steps: dict[str, deque[RecordedUpdate]] = {}
        #: Updates of every level to record, where a solver does not ask for more.
        self.recorded_steps = 0
        self._starts: dict[str, dict[str, Tensors]] = {}
        self._last: dict[str, Tensors] = {}
        self._products = {name: ProductChoice() for name in graph.names}
        self._discovery = Discovery(graph, self.evaluator)
        for batches in graph.batches.values():
            batches.restart(seed)
        modules = [problem.module for problem in graph.problems.values()]
        replicas.broadcast(tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        _ = graph.reads  # a graph that does not fit together is refused here, before any work

    @differentiating()
    def run(self, steps: int) -> None:
        """Update the top level ``steps`` times, and each level below it by the schedule of ``Problem.steps``.

        Ends after fewer steps where ``stop`` is called.

        Raises:
            GraphError: a level has no optimizer.
            LossError: a loss is not a scalar.
            DivergedError: more than ``max_skipped`` updates in a row of a level would have had to be skipped.
        """
        for problem in self.graph.problems.values():
            if problem.optimizer is None:
                raise GraphError(f"level {problem.name!r} has no optimizer: it cannot be updated")
        for callback in self.callbacks:
            callback.on_start(self, steps)
        for _ in range(steps):
            if any(replicas.gather(self._stopping)):
                break
            self._steps.clear()
            self._updated_now.clear()
            self._descend(len(self.graph.names) - 1)
            self._pass_on_notices()
            self.step += 1
            for callback in self.callbacks:
                callback.on_step(self)
        self._stopping = False
        for callback in self.callbacks:
            callback.on_end(self)

    def stop(self) -> None:
        """Let ``run`` end after the step that it is in; it can be called from a callback or a signal handler."""
        self._stopping = True

    def hypergradient(self, name: str) -> dict[str, Tensor]:
        """The hypergradient of a level at the current point, with the records of the last updates.

        Before a level's first update: its first batch, which is not consumed, and the seed. Nothing is
        updated; weights, buffers, optimizer state and random state are bit for bit what they were.

        Returns:
            For each variable of the level, by name, a tensor of its shape; 0 where its loss does not use it.
        """
        return dict(self.solve_hypergradient(name).values)

    @untracked()
    @differentiating()
    def solve_hypergradient(
        self,
        name: str,
        solvers: Mapping[str, Solver] | None = None,
        precision: str | None = None,
        whole: bool = False,
    ) -> Hypergradient:
        """``hypergradient`` with the reports of its solves, with other solvers or in another precision.

        Args:
            name: the level.
            solvers: of the levels that the hypergradient goes through; None takes each level's own.
            precision: float32, bf16 or float64, in which everything is then evaluated; None takes the engine's.
            whole: take whole batches, whatever ``solve_share`` says.

        Raises:
            GraphError: there is no such level.
            SolveError: the solver is strict and failed, or cannot solve a level of this kind.
            NotFiniteError: a loss or the hypergradient is not finite.
        """
        if name not in self.graph.problems:
            raise GraphError(f"there is no level {name!r}; the levels are {', '.join(self.graph.names)}")
        evaluator = Evaluator(self.graph.problems, precision) if precision else self.evaluator
        record = self._record_of(name)
        inputs = leaves(evaluator, differentiated(self.graph, name))
        total: Total | None = None
        for part in record:
            with part.state.active():
                total = added(total, gradients(evaluator.loss(name, part, inputs)[0], inputs))
        assert total is not None
        direct = filled(averaged(total, len(record), inputs), inputs)
        found = self._respond(name, direct, evaluator, solvers, whole)
        if not all(value.isfinite().all() for value in found.values.values()):
            raise NotFiniteError(f"the hypergradient of level {name!r} is not finite")
        return found

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here with the same result, nested dicts of numbers and tensors.

        The records of the last updates are left out: the next step renews them before it uses them. With several
        ranks, all of them must ask for it together, and get the same.
        """
        random, *others = replicas.gather(self._random.state_dict())
        return {
            "step": self.step,
            "skipped": dict(self.skipped),
            "starts": self._starts,
            "last": self._last,
            "random": random,
            "others": others,
            "levels": self.graph.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a state that ``state_dict`` gave, on any number of ranks; one that it knows nothing of draws anew.

        Raises:
            CheckpointError: it is of other levels, or of modules with other parameters; nothing is changed then.
        """
        self.graph.load_state_dict(state["levels"])
        self.step = state["step"]
        known = [state["random"], *state.get("others", ())]
        if replicas.rank() < len(known):
            self._random = RandomState.from_state_dict(known[replicas.rank()])
        else:
            self._random = RandomState.seeded(replicas.own_seed(f"{self.seed}/{self.step}", self.seed))
        # Not in older checkpoints.
        self._starts, self._last = state.get("starts", {}), state.get("last", {})
        self.skipped = {name: state.get("skipped", {}).get(name, 0) for name in self.graph.names}
        self._records, self._steps = {}, {}

    def records(self) -> dict[str, Any]:
        """What the last updates used, for ``load_records``: solves at this very point need it, training does not."""
        held = {level: self._record_of(level) for level in self.graph.names}
        return {"records": held, "steps": {level: list(steps) for level, steps in self._steps.items()}}

    def recorded_bytes(self, count: int) -> int:
        """Memory of the parameters and optimizer state of each level's last ``count`` recorded updates."""
        return sum(one.bytes for steps in self._steps.values() for one in list(steps)[-count:]) if count else 0

    def load_records(self, records: Mapping[str, Any]) -> None:
        """Take over what ``records`` of an engine at the same point gave."""
        self._records = dict(records["records"])
        self._steps = {level: deque(steps, maxlen=len(steps)) for level, steps in records["steps"].items()}

    def _descend(self, index: int) -> None:
        """Update the level of this index once, after the updates of the levels below it that this one asks for."""
        if index > 0:
            below = self.graph.problems[self.graph.names[index - 1]]
            if below.starts_anew:
                below.begin()
                self._steps.pop(below.name, None)  # an unrolled solver does not go back beyond its start
            for _ in range(below.steps):
                self._descend(index - 1)
        self._update(self.graph.problems[self.graph.names[index]])

    def _pass_on_notices(self) -> None:
        while self.evaluator.notices:
            self._tell(self.evaluator.notices.pop(0))

    def _tell(self, notice: str) -> None:
        """Give a line to the callbacks; where there is none, it is a warning."""
        for callback in self.callbacks:
            callback.on_notice(self, notice)
        if not self.callbacks:
            warnings.warn(notice, stacklevel=2)

    def _update(self, problem: Problem) -> None:
        """One update of a level, or none where its loss or hypergradient is not finite, or would go through a level
        that has had no update in this step."""
        name, before = problem.name, self._records.get(problem.name)
        missing = [level for level in self.graph.passes(name) if level not in self._updated_now]
        if missing:
            self._skip(problem, f"level {missing[0]!r} below it has had no update in this step")
            return
        try:
            update = self._updated(problem)
        except (NotFiniteError, CotangentError) as error:
            if before is None:
                self._records.pop(name, None)
            else:
                self._records[name] = before
            self._skip(problem, str(error))
            return
        self.skipped[name] = 0
        self._updated_now.add(name)
        with followed(self.graph, problem, self._steps.get(name)) as block:
            for callback in self.callbacks:
                with block():
                    callback.on_update(self, update)

    def _skip(self, problem: Problem, reason: str) -> None:
        """Leave a level as it is. Too many of these in a row end the run."""
        self.skipped[problem.name] += 1
        for callback in self.callbacks:
            callback.on_skip(self, problem.name, reason)
        count = self.skipped[problem.name]
        if count > self.max_skipped:
            solvers = {level: self.graph.problems[level].solver for level in self.graph.passes(problem.name)}
            through = "".join(f", solver of {level!r}: {solver}" for level, solver in solvers.items())
            updates = f"{count} update{'s' * (count > 1)} in a row of level {problem.name!r}"
            raise DivergedError(f"{updates} had to be skipped, the last one because {reason}{through}")

    def _updated(self, problem: Problem) -> Update:
        """Take the update; raise NotFiniteError where it cannot be, everything but batches and buffers unchanged."""
        name = problem.name
        inputs = leaves(self.evaluator, differentiated(self.graph, name))
        batches = [self.graph.batches[name].next() for _ in range(problem.accumulate)]
        parts: list[Part] = []
        buffers: list[Values] = []
        values: list[tuple[float, dict[str, float]]] = []
        total: Total | None = None
        with self._random.active():
            for batch in batches:
                part = self.evaluator.record(name, batch)
                if recorded_count(problem, self.recorded_steps):
                    buffers.append(buffers_of(self.graph, problem, buffers))
                evaluation, inputs = self._discovery.evaluate(name, part, inputs)
                if replicas.count() > 1:
                    check_finite(name, replicas.mean([evaluation.loss.detach()])[0].item())
                evaluation.move_buffers(name)
                total = added(total, gradients(evaluation.loss, inputs))
                parts.append(part)
                metrics = {key: float(value) for key, value in evaluation.metrics.items()}
                values.append((float(evaluation.loss.detach()), metrics))
                del evaluation
            self._random = RandomState.capture()
        assert total is not None
        mean, metrics = mean_values(values)
        self._records[name] = tuple(parts)
        total = averaged(total, len(parts), inputs)
        unused = {key for key, value in total[name].items() if value is None}
        found = self._respond(name, filled(total, inputs), self.evaluator)
        used = {key: value for key, value in found.values.items() if key not in unused or value.any()}
        norm = set_gradient(problem, used)
        if found.solutions:
            self._starts[name] = dict(found.solutions)
        self._keep_step(problem, buffers, mean)
        cosine = self._cosine(name, found) if found.reports else None
        return Update(name, self.step, mean, metrics, norm, found.reports, cosine)

    def _respond(
        self,
        name: str,
        direct: Gradients,
        evaluator: Evaluator,
        solvers: Mapping[str, Solver] | None = None,
        whole: bool = False,
    ) -> Hypergradient:
        passes = self.graph.passes(name)
        record_of = self._record_of if whole else self._solved_record
        records = {level: record_of(level) for level in passes}
        # A solver other than the level's own starts from nothing.
        memory = Memory(self._steps, {} if solvers else self._starts.get(name, {}), self._products)
        taken = solvers or self._solvers(passes)
        unchecked = self.check and solvers is None and evaluator is self.evaluator and name not in self._checked.names

        def check(level: str, cotangent: Tensors) -> None:
            if line := self._checked.compare(self.graph, evaluator, name, level, records[level], cotangent, memory):
                self._tell(line)

        observe = check if unchecked else None
        try:
            return respond(self.graph, evaluator, records, name, direct, memory, taken, observe)
        except torch.linalg.LinAlgError as error:
            raise NotFiniteError(f"a solve for level {name!r} met numbers that are not finite: {error}") from error

    def _solvers(self, levels: tuple[str, ...]) -> dict[str, Solver]:
        """Each level's own; the graph has checked that it has one."""
        return {level: solver for level in levels if (solver := self.graph.problems[level].solver) is not None}

    def _keep_step(self, problem: Problem, buffers: list[Values], loss: float) -> None:
        """Take the optimizer's step; where the level's solver goes through updates, record it."""
        count = recorded_count(problem, self.recorded_steps)
        if not count:
            take_step(problem, loss)
            return
        steps = self._steps.setdefault(problem.name, deque(maxlen=count))
        steps.append(recorded_step(self.graph, problem, self._records[problem.name], buffers, steps, loss))

    def _cosine(self, name: str, found: Hypergradient) -> float | None:
        """Between a level's hypergradient and its last one; None at the first."""
        before, self._last[name] = self._last.get(name), found.values
        if before is None:
            return None
        one, other = flatten(before), flatten(found.values)
        return torch.nn.functional.cosine_similarity(one, other, dim=0).item()

    def _solved_record(self, name: str) -> Record:
        """The record that solves at a level use."""
        record, share = self._record_of(name), self.graph.problems[name].solve_share
        if share == 1:
            return record
        with record[0].state.active():  # whoever solves at this point draws the same
            return tuple(self.evaluator.record(name, first_rows(part.batch, share, name)) for part in record)

    def _record_of(self, name: str) -> Record:
        if name in self._records:
            return self._records[name]
        with self._random.active():
            return (self.evaluator.record(name, self.graph.batches[name].peek()),)
