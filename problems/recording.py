"""Records the updates of a level that an unrolled solver goes through: what they started from, and what was done."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import optimizer as optimizers

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
    """The start of an update, and everything that changed it: see ``Step``.

    Attributes:
        record: the parts of its batch, which stand for the losses on them.
        buffers: that each part of the batch started from, of the level and of those read.
        step: the update without its losses.
        end: parameters after it, hooks and callbacks included.
        hook_tensors: tensors of hooks and callbacks that depend on it, see ``Tracker``.
        unfollowed: what of it cannot be differentiated, and why; empty where all can.
    """

    record: RecordedBatches
    buffers: Sequence[Values]
    step: Step
    end: Tensors
    hook_tensors: Mapping[Key, Tensor] = field(default_factory=dict)
    unfollowed: str = ""

    @property
    def bytes(self) -> int:
        """Memory of its parameters and optimizer state."""
        groups = (self.step.parameters, *self.step.reads.values(), *self.step.rule.state.values())
        return sum(tensor.numel() * tensor.element_size() for tensors in groups for tensor in tensors.values())

    def __getstate__(self) -> dict[str, Any]:
        """A graph of autograd cannot be stored."""
        state = dict(self.__dict__)
        if self.step.before is not None or self.step.after:
            why = "what hooks and callbacks did in an update is not stored with it"
            step = replace(self.step, before=None, after=())
            state |= {"step": step, "hook_tensors": {}, "unfollowed": self.unfollowed or why}
        return state


def recorded_count(problem: Problem, least: int = 0) -> int:
    """How many of a level's last updates to record: what its solver goes through, or ``least`` where that is more."""
    count = max(least, 0 if problem.solver is None else problem.solver.recorded_steps)
    return count if count and known(problem.optimizer) else 0


def buffers_of(graph: Graph, problem: Problem, before: Sequence[Values]) -> Values:
    """Copies of the buffers of a level and of those it reads; what is as in the last of ``before`` is shared."""
    return {
        level: copied(dict(graph.problems[level].module.named_buffers()), before[-1][level] if before else {})
        for level in (problem.name, *graph.reads[problem.name])
    }


def reads_of(graph: Graph, problem: Problem) -> dict[str, dict[str, Tensor]]:
    """The variables of the levels that a level reads, the tensors themselves."""
    return {level: dict(graph.problems[level].variables()) for level in graph.reads[problem.name]}


def copied(tensors: Tensors, like: Tensors) -> dict[str, Tensor]:
    """Copies of tensors, detached; those of ``like`` where they are the same to the last bit."""
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
    """Let the optimizer, and the scheduler, take their step along the gradient that is set, and record it.

    Args:
        graph: the levels.
        problem: the level; its optimizer is one that is ``known``.
        record: the parts of the update's batch.
        buffers: that each part started from.
        earlier: the updates before, for what has not changed since the last to be shared with it.
        loss: of the update, for schedulers that ask for it.
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
    """Follows the hooks of an optimizer in a step, and takes its rule between those before and those after it.

    Args:
        problem: the level.
        start: its parameters before the step.
        reads: variables of the levels read.
        hook_tensors: of the update before.

    Attributes:
        hook_tensors: after this one.
        rule: the optimizer's update, as the hooks left it.
        before: what they did to parameters, gradient and state before it; None: nothing.
        after: what they did to parameters and state after it.
        unfollowed: why that cannot be differentiated; empty where it can.
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
        """The block in which the optimizer takes its step."""
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
    """Follow callbacks that are told of an update, each in its own block, and add what they do to its record.

    Args:
        graph: the levels.
        problem: the level updated.
        steps: its recorded updates; None where they are not recorded.
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


def slots_of(problem: Problem) -> Keyed:
    """Parameters, gradient and optimizer state of a level as they are now, the tensors themselves."""
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
