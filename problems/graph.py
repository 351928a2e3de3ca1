"""Graph: which level reads which, found by evaluating each loss once."""

from __future__ import annotations

from functools import cached_property
from graphlib import CycleError, TopologicalSorter

import torch

from multilevel.problems.batches import Batches
from multilevel.problems.errors import GraphError, NestedChainError, ReadsError
from multilevel.problems.evaluation import Evaluator, module_device
from multilevel.problems.problem import Problem
from multilevel.problems.randomness import RandomState


class Graph:
    """The levels of a multilevel problem, bottom level first.

    Args:
        problems: at least one level. A level is above those listed before it: their parameters respond to its
            own, as far as their losses read it. Levels that do not depend on each other may be listed in
            any order; the last is the top.

    Raises:
        GraphError: no level, two of one name, or two that share a parameter.
    """

    def __init__(self, *problems: Problem) -> None:
        if not problems:
            raise GraphError("a graph needs at least one level")
        self.problems: dict[str, Problem] = {}
        owners: dict[int, str] = {}
        for problem in problems:
            if problem.name in self.problems:
                raise GraphError(f"two levels are called {problem.name!r}: every level needs a name of its own")
            self.problems[problem.name] = problem
            for name, parameter in problem.module.named_parameters():
                owner = owners.setdefault(id(parameter), problem.name)
                if owner != problem.name:
                    raise GraphError(
                        f"levels {owner!r} and {problem.name!r} share the parameter {name!r}: "
                        "let one own it and the other read it through levels.NAME"
                    )
        self.batches = {
            name: Batches(name, problem.data, module_device(problem.module)) for name, problem in self.problems.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The levels' names, bottom first."""
        return tuple(self.problems)

    @property
    def top(self) -> str:
        return self.names[-1]

    @cached_property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """For each level the other levels whose variables its loss depends on, in the graph's order.

        Found on the first use: each loss is evaluated once on its first batch, which is not consumed.

        Raises:
            ReadsError: a pinned ``reads`` differs from what was found.
            NestedChainError: levels below another one read each other in a cycle.
            GraphError: a level that hypergradients pass through has no solver.
        """
        evaluator = Evaluator(self.problems)
        reads = {name: self._discover(evaluator, name) for name in self.names}
        for name, problem in self.problems.items():
            if problem.reads is not None and set(problem.reads) != set(reads[name]):
                raise ReadsError(
                    f"level {name!r} is pinned to read {_listed(problem.reads)}, but its loss reads "
                    f"{_listed(reads[name])}"
                )
        self._check_passes(reads)
        return reads

    def passes(self, name: str) -> tuple[str, ...]:
        """The levels that the hypergradient of ``name`` goes through, in the order in which they are solved.

        These are the levels below it that it depends on and that depend on it. Each comes after every one
        of them that reads it.
        """
        return _passes(self.names, self.reads, name)

    def describe(self) -> str:
        """The levels, top first: who reads whom, how often each is updated, what its hypergradient goes through."""
        lines = []
        for name in reversed(self.names):
            problem = self.problems[name]
            count = sum(parameter.numel() for parameter in problem.variables().values())
            updates = "1 update" if problem.steps == 1 else f"{problem.steps} updates"
            often = "top level" if name == self.top else f"{updates} for each one of the next level up"
            through = ", ".join(self.passes(name)) or "nothing: its plain gradient"
            solver = "" if problem.solver is None or name == self.top else f"; solver {problem.solver}"
            lines.append(f"{name}: {count:,} parameters, {often}{solver}")
            lines.append(f"    reads {_listed(self.reads[name])}")
            lines.append(f"    hypergradient through {through}")
        return "\n".join(lines)

    def _discover(self, evaluator: Evaluator, name: str) -> tuple[str, ...]:
        leaves = {
            level: {key: value.requires_grad_() for key, value in evaluator.detached(level).items()}
            for level in self.names
        }
        with RandomState.seeded(0).active():
            part = evaluator.record(name, self.batches[name].peek())
            loss, _ = evaluator.loss(name, part, leaves)
        keyed = [(level, leaf) for level, some in leaves.items() for leaf in some.values()]
        if not loss.requires_grad:
            raise GraphError(f"the loss of level {name!r} depends on no level's parameters")
        gradients = torch.autograd.grad(loss, [leaf for _, leaf in keyed], allow_unused=True)
        found = {level for (level, _), gradient in zip(keyed, gradients, strict=True) if gradient is not None}
        return tuple(level for level in self.names if level in found and level != name)

    def _check_passes(self, reads: dict[str, tuple[str, ...]]) -> None:
        for name in self.names:
            for level in _passes(self.names, reads, name):
                if self.problems[level].solver is None:
                    raise GraphError(f"level {level!r} is below {name!r}, which depends on it: give it a solver")


def _passes(names: tuple[str, ...], reads: dict[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    below = set(names[: names.index(name)])
    readers = {level: [other for other in names if level in reads[other]] for level in names}
    inward = _reachable(name, reads, below)
    outward = _reachable(name, readers, below)
    active = [level for level in names if level in inward & outward]
    sorter = TopologicalSorter({level: [r for r in readers[level] if r in active] for level in active})
    try:
        return tuple(sorter.static_order())
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise NestedChainError(
            f"below level {name!r} levels read each other in a cycle ({cycle}): nested chains are not supported"
        ) from None


def _reachable(start: str, edges: dict[str, tuple[str, ...]] | dict[str, list[str]], within: set[str]) -> set[str]:
    """Levels of ``within`` that ``start`` reaches by edges between levels of ``within``."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for level in edges[waiting.pop()]:
            if level in within and level not in found:
                found.add(level)
                waiting.append(level)
    return found


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no level"
