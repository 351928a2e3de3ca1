"""Records a level's updates for unrolled solvers: their starting points and their operations."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import optimizer as optimizers

from multilevel.problems.batches import map_tensors
from multilevel.problems.evaluation.recorded_batch import RecordedBatches, Values
from multilevel.problems.graph import Graph
from multilevel.problems.problem import Problem
from multilevel.problems.stepping import take_step
from multilevel.problems.tracking import NotFollowedError, Tracker
from multilevel.solvers import Step
from multilevel.solvers.stages import Key, Keyed, Stage, keyed_by_kind, keyed_nested
from multilevel.solvers.update_rules import STATE, UpdateRule, known
from multilevel.solvers.vectors import Tensors


@dataclass(frozen=True)
class RecordedUpdate:
    """An update's starting point and everything that changed it; see ``Step``.

    Attributes:
        record: the parts of its batch, which stand for the losses on them.
        buffers: that each part of the batch started from, of the level and of those read.
        step: the update without its losses.
        end: parameters after it, hooks and callbacks included.
        hook_tensors: tensors of hooks and callbacks that depend on it, see ``Tracker``.
        unfollowed: what of it cannot be differentiated, and why; empty if all can.
        outer_step: counts the updates of the top level, see ``LevelHistory``.
    """

    record: RecordedBatches
    buffers: Sequence[Values]
    step: Step
    end: Tensors
    hook_tensors: Mapping[Key, Tensor] = field(default_factory=dict)
    unfollowed: str = ""
    outer_step: int = 0

    @property
    def bytes(self) -> int:
        """Memory of its parameters and optimizer state."""
        groups = (self.step.parameters, *self.step.reads.values(), *self.step.rule.state.values())
        return sum(tensor.numel() * tensor.element_size() for tensors in groups for tensor in tensors.values())

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to store what hooks and callbacks did, since an autograd graph cannot be pickled."""
        state = dict(self.__dict__)
        if self.step.before is not None or self.step.after:
            why = "the changes by hooks and callbacks in an update were not stored with it"
            step = replace(self.step, before=None, after=())
            state |= {"step": step, "hook_tensors": {}, "unfollowed": self.unfollowed or why}
        return state


def memory(updates: Iterable[RecordedUpdate]) -> int:
    """The bytes of all tensors of recorded updates, their batches and draws included; shared ones count once."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for update in updates:
        step, batches = update.step, [(part.batch, part.draws) for part in update.record]
        groups = (step.parameters, step.reads, step.rule.state, update.end, list(update.buffers))
        map_tensors(count, [*batches, *groups])
    return sum(storages.values())


def recorded_count(problem: Problem, least: int = 0) -> int:
    """The number of a level's last updates to record: as many as its solver differentiates, but at least ``least``."""
    count = max(least, 0 if problem.solver is None else problem.solver.recorded_steps)
    return count if count and known(problem.optimizer) else 0


def buffers_of(graph: Graph, problem: Problem, before: Sequence[Values]) -> Values:
    """Copy the buffers of a level and of the levels it reads; buffers equal to the last of ``before`` are shared."""
    return {
        level: copied(dict(graph.problems[level].module.named_buffers()), before[-1][level] if before else {})
        for level in (problem.name, *graph.reads[problem.name])
    }


def reads_of(graph: Graph, problem: Problem) -> dict[str, dict[str, Tensor]]:
    """The variables of the levels that a level reads, not copies of them."""
    return {level: dict(graph.problems[level].variables()) for level in graph.reads[problem.name]}


def copied(tensors: Tensors, like: Tensors) -> dict[str, Tensor]:
    """Detached copies of tensors, or the tensors of ``like`` that are bit for bit equal."""
    return {
        name: like[name] if name in like and identical(like[name], tensor) else tensor.detach().clone()
        for name, tensor in tensors.items()
    }


def identical(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.device == second.device and torch.equal(first, second)


def recorded_step(
    graph: Graph,
    problem: Problem,
    record: RecordedBatches,
    buffers: Sequence[Values],
    earlier: Sequence[RecordedUpdate],
    loss: float,
) -> RecordedUpdate:
    """Let the optimizer and the scheduler take their step along the current gradient, and record it.

    Args:
        graph: the levels.
        problem: the level; its optimizer is ``known``.
        record: the parts of the update's batch.
        buffers: values of the buffers at the start of each part.
        earlier: the earlier updates, to share unchanged tensors with.
        loss: loss of the update, for schedulers that need it.
    """
    last, reads = earlier[-1] if earlier else None, reads_of(graph, problem)
    start = copied(problem.variables(), last.end if last else {})
    read_copies = {level: copied(tensors, last.step.reads[level] if last else {}) for level, tensors in reads.items()}
    hooks = Hooks(problem, start, reads, last.hook_tensors if last else {})
    with hooks.followed():
        take_step(problem, loss)
    end = copied(problem.variables(), start)
    step = Step((), start, read_copies, hooks.rule, problem.sign < 0, hooks.before, hooks.after)
    return RecordedUpdate(record, buffers, step, end, hooks.hook_tensors, hooks.unfollowed)


class Hooks:
    """Tracks an optimizer's hooks in a step, and takes its update rule between the hooks before and after the step.

    Args:
        problem: the level.
        start: the level's parameters before the step.
        reads: variables of the levels read.
        hook_tensors: hook tensors of the previous update.

    Attributes:
        hook_tensors: hook tensors after this update.
        rule: the optimizer's update rule, as the hooks left it.
        before: the changes by hooks to parameters, gradient and state before the update; None: no change.
        after: the changes by hooks to parameters and state after the update.
        unfollowed: why the changes cannot be differentiated; empty if they can.
    """

    rule: UpdateRule

    def __init__(self, problem: Problem, start: Tensors, reads: Values, hook_tensors: Mapping[Key, Tensor]) -> None:
        assert problem.optimizer is not None
        self.problem, self.optimizer, self.start, self.reads = problem, problem.optimizer, start, reads
        self.hook_tensors = hook_tensors
        self.before: Stage | None = None
        self.after: tuple[Stage, ...] = ()
        self.unfollowed = ""
        self._tracker: Tracker | None = None
        first = (optimizers._global_optimizer_pre_hooks, self.optimizer._optimizer_step_pre_hooks)
        last = (optimizers._global_optimizer_post_hooks, self.optimizer._optimizer_step_post_hooks)
        self._any_before, self._any_after = any(first), any(last)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """A block for the optimizer's step."""
        handles = [
            self.optimizer.register_step_pre_hook(self._between),
            self.optimizer.register_step_post_hook(self._afterwards),
        ]
        post = cast(OrderedDict[int, Any], self.optimizer._optimizer_step_post_hooks)
        post.move_to_end(handles[1].id, last=False)
        try:
            if self._any_before:
                self._open(self.start)
            yield
            stage = self._close()
            self.after = () if stage is None else (stage,)
        finally:
            for handle in handles:
                handle.remove()
            if self._tracker is not None:
                self._tracker.__exit__(None, None, None)

    def _between(self, *_: Any) -> None:
        self.before = self._close()
        variables = self.problem.variables()
        rule = UpdateRule.of(self.optimizer, variables, self.problem.clip_norm)
        assert rule is not None
        self.rule = rule.recorded({name for name, variable in variables.items() if variable.grad is not None})

    def _afterwards(self, *_: Any) -> None:
        if self._any_after:
            self._open(copied(self.problem.variables(), self.start))

    def _open(self, parameters: Tensors) -> None:
        slots = slots_of(self.problem)
        snapshots = {key: tensor.detach().clone() for key, tensor in slots.items() if key[0] != "parameters"}
        followed = {**slots, **keyed_nested("reads", self.reads), **self.hook_tensors}
        tracker = Tracker(followed, snapshots | keyed_by_kind("parameters", parameters))
        self._tracker = tracker.__enter__()

    def _close(self) -> Stage | None:
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return None
        tracker.__exit__(None, None, None)
        try:
            stage = tracker.stage(slots_of(self.problem))
            self.hook_tensors = tracker.hook_tensors
            return stage
        except NotFollowedError as error:
            self.unfollowed = f"a step hook of its optimizer: {error}"
            return None


@contextmanager
def followed(
    graph: Graph, problem: Problem, steps: deque[RecordedUpdate] | None
) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """Track callbacks on an update, each in its own block, and add their changes to the update's record.

    Args:
        graph: the levels.
        problem: the level updated.
        steps: its recorded updates; None without recording.
    """
    if not steps:
        yield nullcontext
        return
    update = steps[-1]
    slots = {**slots_of(problem), **keyed_nested("reads", reads_of(graph, problem)), **update.hook_tensors}
    tracker = Tracker(slots, keyed_by_kind("parameters", update.end))
    yield lambda: tracker
    end = copied(problem.variables(), update.end)
    try:
        stage = tracker.stage(slots_of(problem))
    except NotFollowedError as error:
        steps[-1] = replace(update, end=end, unfollowed=update.unfollowed or f"Callback.on_update: {error}")
        return
    if stage is not None:
        step = replace(update.step, after=(*update.step.after, stage))
        steps[-1] = replace(update, step=step, end=end, hook_tensors=tracker.hook_tensors)


def begun(problem: Problem) -> frozenset[Key]:
    """Let a level begin. Returns the keys of the parameters and optimizer state that this changed."""
    before = {key: tensor.detach().clone() for key, tensor in slots_of(problem).items()}
    problem.begin()
    after = slots_of(problem)
    return frozenset(key for key, tensor in after.items() if key not in before or not identical(before[key], tensor))


def slots_of(problem: Problem) -> Keyed:
    """The current parameters, gradients and optimizer state of a level, not copies of them."""
    assert problem.optimizer is not None
    variables = problem.variables()
    gradient = {name: variable.grad for name, variable in variables.items() if variable.grad is not None}
    state = {
        ("state", name, key): value
        for name, variable in variables.items()
        for key, value in problem.optimizer.state.get(variable, {}).items()
        if isinstance(value, Tensor) and any(key in keys for keys in STATE.values())
    }
    return keyed_by_kind("parameters", variables) | keyed_by_kind("gradient", gradient) | state
