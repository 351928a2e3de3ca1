"""Runs a graph on Betty's engine, with its problems, schedule, optimizers and hypergradients."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from multilevel.betty.level import BettyLevel, BettyOwnEngine, EngineConfig, get_logger
from multilevel.betty.solvers import BettyError, BettySolver, Darts, betty_solver
from multilevel.problems import replicas
from multilevel.problems.callbacks import Callback, Update
from multilevel.problems.engine import Engine
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.recorded_batch import RecordedBatch, RecordedBatches
from multilevel.problems.graph import Graph
from multilevel.problems.hypergradient import Hypergradient
from multilevel.solvers import MultilevelError, Solver, SolveReport


class BettyEngine(Engine):
    """Runs a graph on Betty 0.2.1: its engine calls the levels, forms the hypergradients and takes the steps.

    Losses are evaluated here, so batches, draws and checkpoints are the same as with ``Engine``; see
    ``BettySolver.held``. Betty rebuilds the levels' optimizers and schedulers; their state is kept. Everything else is
    Betty's: it restores perturbed weights only up to rounding, and it skips no update, so an update that is not finite
    ends the run at the next loss.

    Args:
        graph: the levels.
        solver: for every level; None takes Betty's counterpart of each level's solver.
        seed: as for ``Engine``.
        precision: as for ``Engine``.
        callbacks: as for ``Engine``.

    Raises:
        SettingError: Betty has no counterpart of a level's solver, accumulate or solve_share.
        BettyError: Betty refuses the graph, or would not treat it as one multilevel problem.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        solver: BettySolver | None = None,
        seed: int = 0,
        precision: str = "float32",
        callbacks: Iterable[Callback] = (),
    ) -> None:
        super().__init__(graph, seed=seed, precision=precision, callbacks=callbacks)
        self._loss_error: Exception | None = None
        _check(graph)
        through = {level for name in graph.names for level in graph.passes(name)}
        self.levels: dict[str, BettyLevel] = {}
        for name, level in graph.problems.items():
            level_solver = (solver or betty_solver(level.solver, name)) if name in through else Darts()
            self.levels[name] = BettyLevel(self, level, level_solver, retain_graph=bool(graph.passes(name)))
        with self._explained("the graph"), _quiet():
            self._betty = BettyOwnEngine(list(self.levels.values()), EngineConfig(), self._dependencies())

    def next_part(self, name: str) -> RecordedBatch:
        """The next batch of a level with its draws, recorded for its update."""
        batch = self.graph.batches[name].next()
        with self.updates.random.active():
            part = self.evaluator.record(name, batch)
        self.histories[name].record = (part,)
        return part

    def evaluate(self, level: BettyLevel, part: RecordedBatch, fresh: bool) -> Tensor:
        """A level's loss at the current parameters of all levels."""
        name = level.level.name
        parameters = {peer: problem.variables() for peer, problem in self.graph.problems.items()}
        anew = not fresh and not level.solver.held
        try:
            with (self.updates.random if anew else part.state).active():
                used = self.evaluator.record(name, part.batch) if anew else part
                loss, metrics = self.evaluator.loss(name, used, parameters, move_buffers=fresh or anew)
                if fresh or anew:
                    self.updates.random = RandomState.capture()
        except Exception as error:
            self._loss_error = error
            raise
        if fresh:
            level.metrics = {key: float(value) for key, value in metrics.items()}
        damping = getattr(level.solver, "damping", 0.0)
        if damping and not fresh:  # 0 with derivative 0 here, and the second derivative is the damping
            moves = (parameter - parameter.detach() for parameter in parameters[name].values())
            loss = loss + damping / 2 * sum(move.square().sum() for move in moves)
        return loss

    def report_update(self, level: BettyLevel, loss: float) -> None:
        """Tell the callbacks of an update."""
        name = level.level.name
        update = Update(name, self.step, loss, level.metrics, level.norm, self._reports(name))
        for callback in self.callbacks:
            callback.on_update(self, update)

    def solve_hypergradient(
        self,
        name: str,
        solvers: Mapping[str, Solver] | None = None,
        precision: str | None = None,
        whole: bool = False,
        record: RecordedBatches | None = None,
    ) -> Hypergradient:
        """The hypergradient computed by Betty, or by ``Engine`` if solvers, a precision or a record are given.

        Betty's perturbations of weights, and anything it changes with ``held=False``, are undone afterwards.

        Raises:
            GraphError: there is no such level.
            BettyError: Betty refuses; the message says why.
        """
        if solvers is not None or precision is not None or record is not None or name not in self.levels:
            return super().solve_hypergradient(name, solvers, precision, whole, record)
        problem, passes = self.levels[name], self.graph.passes(name)
        for level in (name, *passes):
            (self.levels[level].cur_batch,) = self.updates.record_of(level)
        with self._unchanged(), self._explained(f"the hypergradient of level {name!r}"):
            problem.zero_grad()
            loss = problem.training_step_exec(problem.cur_batch)
            problem.backward(loss, problem.trainable_parameters(), problem.paths, retain_graph=bool(passes))
            values = {
                key: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
                for key, parameter in problem.level.variables().items()
            }
            problem.zero_grad()
        return Hypergradient(values, self._reports(name), {})

    def advance(self, steps: int = 1) -> None:
        """Refused.

        Raises:
            BettyError: always.
        """
        raise BettyError("Betty updates every level in a step, so it cannot hold the top level")

    def _descend(self) -> None:
        """One update of the top level, after the updates of lower levels that Betty's schedule makes."""
        updates = 1
        for name, above in zip(self.graph.names, self.graph.names[1:], strict=False):
            if name not in self.graph.reads[above]:
                raise BettyError(
                    f"level {above!r} does not read {name!r}, the next level below it: Betty schedules a level by the "
                    "levels that read it, so its schedule would differ"
                )
            updates *= self.graph.problems[name].steps
        for name, problem in self.graph.problems.items():
            if problem.starts_anew:
                raise BettyError(
                    f"level {name!r} restarts before every update of the next level up, which Betty cannot do"
                )
        with self._explained("a step"):
            for _ in range(updates):
                self._betty.global_step += 1
                self._betty.train_step()

    def _reports(self, name: str) -> dict[str, SolveReport]:
        """The cost of a hypergradient's solves: Betty solves a level once for each path through it."""
        paths = self.levels[name].paths
        reports = {}
        for level in self.graph.passes(name):
            problem = self.levels[level]
            solves = sum(problem in path for path in paths)
            if not solves:
                continue
            evaluations = solves * (2 if problem.solver.type == "darts" else 1)
            reports[level] = SolveReport(evaluations, solves * problem.solver.products)
        return reports

    def _dependencies(self) -> dict[str, dict[BettyLevel, list[BettyLevel]]]:
        """The dependencies between levels, in Betty's format."""
        names, reads = self.graph.names, self.graph.reads
        down = {name: [low for low in self.graph.passes(name) if name in reads[low]] for name in names}
        up = {name: [high for high in names[names.index(name) + 1 :] if name in reads[high]] for name in names}
        return {
            key: {self.levels[name]: [self.levels[end] for end in ends] for name, ends in edges.items() if ends}
            for key, edges in (("u2l", down), ("l2u", up))
        }

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Restore weights, buffers and generators bit for bit after the block."""
        modules = [problem.module for problem in self.graph.problems.values()]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        before, random = [tensor.detach().clone() for tensor in tensors], self.updates.random
        try:
            yield
        finally:
            self.updates.random = random
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)

    @contextmanager
    def _explained(self, task: str) -> Iterator[None]:
        """Within the block, turn an error of Betty (but not of a loss) into one line."""
        try:
            yield
        except MultilevelError:
            raise
        except Exception as error:
            if error is self._loss_error:
                raise
            text = next(iter(str(error).splitlines()), "")
            raise BettyError(f"Betty cannot do {task}: {type(error).__name__}: {text}{self._cause(text)}") from error

    def _cause(self, text: str) -> str:
        """Explain an error that torch raises inside Betty."""
        if "not have been used" in text:
            return " (its cg and neumann need a loss whose gradient depends on every parameter of the level)"
        frozen = [
            name
            for name, level in self.levels.items()
            if level.solver.type == "cg" and len(level.parameters()) > len(level.trainable_parameters())
        ]
        if frozen and "does not require grad" in text:
            return f" (its cg differentiates the frozen parameters of level {frozen[0]!r} as well)"
        return ""


def _check(graph: Graph) -> None:
    """Raise for anything that Betty would silently do differently."""
    if replicas.count() > 1:
        raise BettyError("Betty runs in only one process here; use engine=multilevel for several ranks")
    for name, problem in graph.problems.items():
        for setting in ("accumulate", "solve_share"):
            if getattr(problem, setting) != 1:
                raise BettyError(f"levels.{name}.{setting}: got {getattr(problem, setting)}; on Betty expected 1")
    for name in graph.names:
        passes = graph.passes(name)
        for level in passes:
            above = graph.names[graph.names.index(level) + 1 :]
            for higher in (target for target in graph.reads[level] if target in passes and target in above):
                readers = {reader for reader in (name, *passes) if level in graph.reads[reader]} - {level, higher}
                if readers or not graph.approximate:
                    remedy = "" if readers else "; Graph(..., approximate=True) accepts this"
                    raise BettyError(
                        f"level {level!r} reads {higher!r} above it, below {name!r}: Betty only follows paths "
                        f"downwards and omits this part of the hypergradient{remedy}"
                    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Betty, which describes every problem on standard output."""
    logger = get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
