"""Engine: runs the schedule of updates, each along its level's hypergradient."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.callbacks import Callback
from multilevel.problems.errors import DivergedError, GraphError, NotFiniteError
from multilevel.problems.evaluation.compilation import Backend, Compilation
from multilevel.problems.evaluation.evaluator import Evaluator, module_device
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.recorded_batch import RecordedBatches
from multilevel.problems.graph import Graph
from multilevel.problems.hypergradient import Hypergradient
from multilevel.problems.problem import Problem
from multilevel.problems.recording import followed
from multilevel.problems.replay import Experiment, ReplaySettings
from multilevel.problems.replay_results import Replay
from multilevel.problems.stored_updates import restore_updates, stored_updates
from multilevel.problems.tracking import untracked
from multilevel.problems.update import Updates
from multilevel.solvers import CotangentError, Solver
from multilevel.solvers.differentiation import differentiating


class Engine:
    """Trains the levels of a graph together.

    Args:
        graph: the levels.
        seed: seed of all draws, of dropout and of the order of the data; global generators are not touched.
        precision: float32 (the parameters' own dtype) or bf16 (autocast).
        callbacks: called for every update.
        max_skipped: consecutive updates of a level that may be skipped because its loss or hypergradient is not finite.
        compile: compile the calls on levels in updates where possible, see ``Compilation``: True, or a backend of
            torch.compile. Solves and reference computations are not compiled.
        check: compare the products of each level's first hypergradient with products formed another way, and report a
            difference above 5%.

    Attributes:
        step: updates of the top level so far.
        updates: performs the levels' updates.
        histories: what is kept of each level's updates.
        updated_now: the levels updated in the current step.
        recorded_steps: updates of every level to record, unless a solver asks for more.
        recorded_outer_steps: updates of the top level within which they are kept, unless a solver asks for more.

    Raises:
        SettingError: an unknown precision.
        GraphError: see ``Graph.reads``.

    Examples:
        >>> engine = Engine(graph)  # of Graph's example, whose weight responds one to one
        >>> engine.hypergradient("target")
        {'value': tensor([-6.])}
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
        self.updates = Updates(graph, self.evaluator, RandomState.seeded(replicas.rank_seed(str(seed), seed)), check)
        self.histories = self.updates.histories
        self.recorded_steps = 0
        self.recorded_outer_steps = 1
        self._stopping = False
        self.updated_now: set[str] = set()
        for batches in graph.batches.values():
            batches.restart(seed)
        modules = [problem.module for problem in graph.problems.values()]
        replicas.broadcast(tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        _ = graph.reads  # rejects an inconsistent graph before any work

    @property
    def skipped(self) -> dict[str, int]:
        """For each level, the number of consecutive updates skipped most recently."""
        return {name: history.skipped for name, history in self.histories.items()}

    @differentiating()
    def run(self, steps: int) -> None:
        """Update the top level ``steps`` times, and the levels below it on the schedule of ``Problem.steps``.

        Ends early if ``stop`` is called.

        Raises:
            GraphError: a level has no optimizer.
            LossError: a loss is not a scalar.
            DivergedError: more than ``max_skipped`` consecutive updates of a level would have been skipped.
        """
        self._require_optimizers(self.graph.names)
        for callback in self.callbacks:
            callback.on_start(self, steps)
        for _ in range(steps):
            if any(replicas.gather(self._stopping)):
                break
            self._begin_step()
            self._descend()
            self.updates.note_memory()
            self._pass_on_notices()
            self.step += 1
            for callback in self.callbacks:
                callback.on_step(self)
        self._stopping = False
        for callback in self.callbacks:
            callback.on_end(self)

    @differentiating()
    def advance(self, steps: int = 1) -> None:
        """Train the levels below the top level for ``steps`` updates of it that it does not make: it takes its next
        batches, for ``hypergradient``, but its variables are held. Callbacks are not called.

        Raises:
            GraphError: a level below the top level has no optimizer.
            LossError: a loss is not a scalar.
            DivergedError: as in ``run``.
        """
        callbacks, self.callbacks = self.callbacks, []
        self._require_optimizers(self.graph.names[:-1])
        try:
            for _ in range(steps):
                self._begin_step()
                self._descend_below(len(self.graph.names) - 1)
                self.histories[self.graph.top].record = self.updates.next_record(self.graph.problems[self.graph.top])
        finally:
            self.callbacks = callbacks
        self._pass_on_notices()

    def stop(self) -> None:
        """Make ``run`` end after the current step; may be called from a callback or a signal handler."""
        self._stopping = True

    def hypergradient(self, name: str) -> dict[str, Tensor]:
        """The hypergradient of a level at the current point, from the records of the last updates.

        Before a level's first update, its record is its first batch, which is not consumed, and the seed. Nothing is
        updated: weights, buffers, optimizer state and random state stay bit for bit the same.

        Returns:
            For each variable of the level, by name, a tensor of its shape; 0 for variables that its loss does not use.
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
        record: RecordedBatches | None = None,
    ) -> Hypergradient:
        """``hypergradient`` and the reports of its solves, optionally with other solvers or in another precision.

        Args:
            name: the level.
            solvers: solvers of the levels that the hypergradient passes through; None takes each level's own.
            precision: precision of all evaluations: float32, bf16 or float64; None takes the engine's.
            whole: use whole batches and ignore ``solve_share``.
            record: what the level's own loss is evaluated on; None takes the record of its last update.

        Raises:
            GraphError: the level does not exist.
            SolveError: a strict solver failed, or a solver cannot handle this kind of level.
            NotFiniteError: a loss or the hypergradient is not finite.
        """
        if name not in self.graph.problems:
            raise GraphError(f"unknown level {name!r}; the levels are {', '.join(self.graph.names)}")
        evaluator = Evaluator(self.graph.problems, precision) if precision else self.evaluator
        direct = self.updates.direct_gradient(name, evaluator, record)
        hypergradient = self.updates.respond(name, direct, evaluator, solvers, whole)
        self._pass_on_notices()
        if not all(value.isfinite().all() for value in hypergradient.values.values()):
            raise NotFiniteError(f"the hypergradient of level {name!r} is not finite")
        return hypergradient

    def replay(
        self,
        outer_steps: Sequence[int] = (1, 8, 32),
        *,
        solvers: Mapping[str, Mapping[str, Solver]] | None = None,
        measures: Mapping[str, Callable[[], float]] | None = None,
        **settings: Any,
    ) -> Replay:
        """Measure whether the top level's hypergradients point where the upper loss rises after further training.

        With the top level held, hypergradients of a number of outer steps are averaged to a direction, twice. The top
        level is moved by a step along it and against it, the levels below are trained for ``outer_steps`` further outer
        steps, and the difference of the upper loss gives a slope. Nothing is changed: levels, data, optimizers and
        generators are afterwards as before, bit for bit; callbacks are not called.

        Args:
            outer_steps: numbers of outer steps after which to measure, from the end of those that give directions.
            solvers: for each label, the solver of each level that the hypergradient passes through; None takes the
                levels' own.
            measures: other numbers to measure after each replay, by name.
            settings: other fields of ``multilevel.problems.ReplaySettings``: steps, size, seeds, held_out, draws,
                control.

        Raises:
            SettingError: an unusable setting.
            GraphError: the top level has a plain gradient, or a level below it no optimizer.
            NotFiniteError: a loss is not finite.

        Examples:
            The slope that an exact solve predicts is that after many steps, not after one:

            >>> replay = engine.replay([1, 32], steps=2, seeds=1, draws=["held"])  # the engine of Engine's example
            >>> slopes = [row.halves[0] for row in replay.rows if row.solver == "own solvers"]
            >>> [(round(slope.measured[0], 1), round(slope.predicted[0], 1)) for slope in slopes]
            [(1.0, 5.0), (4.0, 4.0)]
        """
        if solvers is None:
            own = {level: self.graph.problems[level].solver for level in self.graph.passes(self.graph.top)}
            solvers = {"own solvers": {level: solver for level, solver in own.items() if solver is not None}}
        return Experiment(self, ReplaySettings(outer_steps, **settings), solvers, measures or {}).run()

    def state_dict(self) -> dict[str, Any]:
        """The whole state as nested dicts of numbers and tensors, from which a later engine continues with the same
        result.

        It omits the records of the last updates, which the next step renews before using them, unless a solver looks
        back over several steps. With several ranks, all must call this together, and get the same state.

        Raises:
            CheckpointError: a solver looks back over updates that cannot be stored, see ``stored_updates``.
        """
        random, *later_ranks = replicas.gather(self.updates.random.state_dict())
        return {
            "step": self.step,
            "skipped": self.skipped,
            "starts": {name: history.solutions for name, history in self.histories.items() if history.solutions},
            "last": {
                name: history.hypergradient
                for name, history in self.histories.items()
                if history.hypergradient is not None
            },
            "random": random,
            "others": later_ranks,
            "updates": replicas.gather(self._looked_back_on()),
            "levels": self.graph.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from ``state_dict``, on any number of ranks; ranks without a saved state are reseeded.

        Raises:
            CheckpointError: the state belongs to other levels, or to modules with other parameters; nothing is then
                changed.
            ValueError: a number of steps, or the state of a random generator, is none that an engine has.
        """
        for count in (state["step"], *state.get("skipped", {}).values()):
            if type(count) is not int or count < 0:
                raise ValueError(f"{count} is not a number of steps")
        known = [state["random"], *state.get("others", ())]
        if replicas.rank() < len(known):
            random = RandomState(**known[replicas.rank()])
            random.check()
        else:
            random = RandomState.seeded(replicas.rank_seed(f"{self.seed}/{state['step']}", self.seed))
        self.graph.load_state_dict(state["levels"])
        self.step, self.updates.random = state["step"], random
        for name, history in self.histories.items():
            history.record = None
            history.updates.clear()
            # Missing from older checkpoints.
            history.solutions = state.get("starts", {}).get(name, {})
            history.hypergradient = state.get("last", {}).get(name)
            history.skipped = state.get("skipped", {}).get(name, 0)
        self._restore_updates(state.get("updates", ()))

    def _looked_back_on(self) -> dict[str, Any]:
        """The recorded updates of the levels whose solvers look back over several updates of the top level."""
        return {
            name: stored_updates(history)
            for name, history in self.histories.items()
            if self.updates.outer_steps_of(name) > 1
        }

    def _restore_updates(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        if any(ranks) and len(ranks) != replicas.count():
            self.evaluator.notices.append(
                f"the checkpoint has the earlier updates of {len(ranks)} ranks, and there are {replicas.count()}: the "
                "first hypergradients look back less far than solver.outer_steps"
            )
            return
        for name, stored in ranks[replicas.rank()].items() if ranks else ():
            restore_updates(self.histories[name], stored, module_device(self.graph.problems[name].module))

    def records(self) -> dict[str, Any]:
        """The records of the last updates, for ``load_records``. Solves at the same point need them; training does
        not."""
        return {
            "records": {name: self.updates.record_of(name) for name in self.graph.names},
            "steps": {name: list(history.updates) for name, history in self.histories.items() if history.updates},
            "outer_step": max(history.outer_step for history in self.histories.values()),
        }

    def load_records(self, records: Mapping[str, Any]) -> None:
        """Load the ``records`` of an engine at the same point."""
        for name, history in self.histories.items():
            steps = records["steps"].get(name, ())
            history.record = records["records"].get(name)
            history.updates = deque(steps, maxlen=len(steps))
            history.outer_step = records["outer_step"]

    def recorded_bytes(self, count: int) -> int:
        """The memory of the parameters and optimizer states of each level's last ``count`` recorded updates."""
        latest = (islice(reversed(history.updates), count) for history in self.histories.values())
        return sum(update.bytes for update in chain.from_iterable(latest))

    def _require_optimizers(self, names: Iterable[str]) -> None:
        for name in names:
            if self.graph.problems[name].optimizer is None:
                raise GraphError(f"level {name!r} has no optimizer: it cannot be updated")

    def _begin_step(self) -> None:
        self.updates.begin_outer_step(self.recorded_outer_steps)
        self.updated_now.clear()

    def _descend(self) -> None:
        """Make the updates of a step: the top level's, after those below it."""
        self._descend_below(len(self.graph.names) - 1)
        self._update(self.graph.problems[self.graph.top])

    def _descend_below(self, index: int) -> None:
        """Make the scheduled updates of the levels below an update of the level at this index."""
        if index == 0:
            return
        below = self.graph.problems[self.graph.names[index - 1]]
        self.updates.begin(below, self.recorded_steps)
        for _ in range(below.steps):
            self._descend_below(index - 1)
            self._update(below)

    def _pass_on_notices(self) -> None:
        """Pass the notices to the callbacks, or issue them as warnings if there are none."""
        while self.evaluator.notices:
            notice = self.evaluator.notices.pop(0)
            for callback in self.callbacks:
                callback.on_notice(self, notice)
            if not self.callbacks:
                warnings.warn(notice, stacklevel=1)

    def _update(self, problem: Problem) -> None:
        """Update a level, or skip the update if its loss or hypergradient is not finite, or passes through a level
        without an update in this step."""
        name, history = problem.name, self.histories[problem.name]
        missing = [level for level in self.graph.passes(name) if level not in self.updated_now]
        if missing:
            self._skip(problem, f"level {missing[0]!r} below it has had no update in this step")
            return
        before = history.record
        try:
            update = self.updates.take(problem, self.step, bool(self.callbacks), self.recorded_steps)
        except (NotFiniteError, CotangentError) as error:
            history.record = before
            self._skip(problem, str(error))
            return
        history.skipped = 0
        self.updated_now.add(name)
        if not self.callbacks:
            return
        with followed(self.graph, problem, history.updates) as block:
            for callback in self.callbacks:
                with block():
                    callback.on_update(self, update)

    def _skip(self, problem: Problem, reason: str) -> None:
        """Skip an update of a level. Too many consecutive skips end the run."""
        count = self.histories[problem.name].skipped = self.histories[problem.name].skipped + 1
        for callback in self.callbacks:
            callback.on_skip(self, problem.name, reason)
        if count > self.max_skipped:
            self._pass_on_notices()
            solvers = {level: self.graph.problems[level].solver for level in self.graph.passes(problem.name)}
            through = "".join(f", solver of {level!r}: {solver}" for level, solver in solvers.items())
            updates = f"{count} update{'s' * (count > 1)} in a row of level {problem.name!r}"
            raise DivergedError(f"{updates} were skipped, the last one because {reason}{through}")
