"""Graph: which level reads which, found by evaluating each loss once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter

import torch
from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.batches import Batches
from multilevel.problems.errors import CheckpointError, GraphError, NestedChainError, ReadsError
from multilevel.problems.evaluation import Evaluator, module_device
from multilevel.problems.html import html_table
from multilevel.problems.lazy_modules import initialize
from multilevel.problems.problem import Problem
from multilevel.problems.randomness import RandomState


class Graph:
    """The levels of a multilevel problem, bottom level first.

    Args:
        problems: at least one level. A level is above those listed before it: their parameters respond to its
            own, as far as their losses read it. Levels that do not depend on each other may be listed in
            any order; the last is the top.
        approximate: where levels read each other and a solver cannot take the response of the inner ones into the
            outer one's Hessian, leave that response out instead of raising an error.

    Raises:
        GraphError: no level, two of one name, two that share a parameter, or a lazy module that its level's loss on its
            first batch, which is not consumed, does not initialize.
    """

    def __init__(self, *problems: Problem, approximate: bool = False) -> None:
        if not problems:
            raise GraphError("a graph needs at least one level")
        self.approximate = approximate
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
        initialize(self.problems, self.batches)

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
            NestedChainError: levels read each other, and a solver cannot treat that exactly.
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
        self.__dict__["reads"] = reads  # the checks use it
        self._check_passes()
        return reads

    def passes(self, name: str) -> tuple[str, ...]:
        """The levels that the hypergradient of ``name`` goes through, in the order in which they are solved.

        These are the levels below it that it depends on and that depend on it. Each comes after every one
        of them that reads it, and after those below it that it reads and that read it.
        """
        return tuple(level for block in self.blocks(name) for level in block.levels)

    def blocks(self, name: str) -> tuple[Block, ...]:
        """The levels of ``passes``, each with those whose response is part of its own gradient."""
        below = set(self.names[: self.names.index(name)])
        readers = {level: [other for other in self.names if level in self.reads[other]] for level in self.names}
        active = _reachable(name, self.reads, below) & _reachable(name, readers, below)
        return _ordered([level for level in self.names if level in active], self.reads)

    def treats_exactly(self, block: Block) -> bool:
        """Whether the block's solvers can solve with its total gradient; without inner levels, any can."""
        solvers = [self.problems[level].solver for level in block.levels]
        return not block.inner or all(solver is not None and solver.nests for solver in solvers)

    def describe(self) -> str:
        """The levels, top first: who reads whom, how often each is updated, what its hypergradient goes through."""
        lines = []
        for name, parameters, often, reads, through, solver in self._facts():
            ending = f"; solver {solver}" if solver else ""
            lines += [f"{name}: {parameters}, {often}{ending}", f"    reads {reads}"]
            lines.append(f"    hypergradient through {through}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        header = ("level", "parameters", "updates", "reads", "hypergradient through", "solver")
        return html_table(header, self._facts())

    def _facts(self) -> Iterator[tuple[str, str, str, str, str, str]]:
        """Of each level, top first: name, parameters, how often it is updated, whom it reads, what its hypergradient
        goes through, and its solver."""
        for name in reversed(self.names):
            problem = self.problems[name]
            count = sum(parameter.numel() for parameter in problem.variables().values())
            updates = "1 update" if problem.steps == 1 else f"{problem.steps} updates"
            often = "top level" if name == self.top else f"{updates} for each one of the next level up"
            through = ", ".join(self.passes(name)) or "nothing: its plain gradient"
            solver = "" if problem.solver is None or name == self.top else str(problem.solver)
            parameters = f"{count:,} parameter{'s' * (count != 1)}"
            yield name, parameters, often, _listed(self.reads[name]), through, solver

    def _discover(self, evaluator: Evaluator, name: str) -> tuple[str, ...]:
        leaves = {
            level: {key: value.requires_grad_() for key, value in evaluator.detached(level).items()}
            for level in self.names
        }
        with RandomState.seeded(0).active():
            part = evaluator.record(name, self.batches[name].peek())
            loss, _ = evaluator.loss(name, part, leaves)
        keyed = [(level, leaf) for level, some in leaves.items() for leaf in some.values()]
        found: set[str] = set()
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, [leaf for _, leaf in keyed], allow_unused=True)
            found = {level for (level, _), gradient in zip(keyed, gradients, strict=True) if gradient is not None}
        found = set().union(*replicas.gather(found))  # a loss may not use all of them on every share of the data
        if not found:
            raise GraphError(f"the loss of level {name!r} depends on no level's parameters")
        return tuple(level for level in self.names if level in found and level != name)

    def _check_passes(self) -> None:
        for name in self.names:
            for block in self.blocks(name):
                for level in block.levels:
                    if self.problems[level].solver is None:
                        raise GraphError(f"level {level!r} is below {name!r}, which depends on it: give it a solver")
                if not self.approximate and not self.treats_exactly(block):
                    raise NestedChainError(
                        f"levels {_listed(block.levels)} read each other below {name!r}: exactly treated by solvers of "
                        "the Hessian (dense, conjugate_gradient, minres, neumann, nystrom, identity) at each of them; "
                        "approximate=true leaves the response of the inner levels out of the outer one's Hessian"
                    )


@dataclass(frozen=True)
class Block:
    """A level, and those below it that read it and that it reads: their response is part of its own gradient.

    Attributes:
        name: the level.
        inner: the blocks within, in the order in which they are solved; empty where its gradient is the plain one.
    """

    name: str
    inner: tuple[Block, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """All its levels, in the order in which they are solved; its own last."""
        return (*(level for block in self.inner for level in block.levels), self.name)


def _ordered(levels: Sequence[str], reads: Mapping[str, Sequence[str]]) -> tuple[Block, ...]:
    """Blocks of ``levels`` (bottom first), each after every one that reads a level of it.

    Levels that read each other in a cycle are one block: that of the highest of them.
    """
    edges = {level: [other for other in reads[level] if other in levels] for level in levels}
    reached = {level: _reachable(level, edges, set(levels)) for level in levels}
    cycles = [
        [other for other in levels if other == one or (other in reached[one] and one in reached[other])]
        for one in levels
    ]
    members = {cycle[-1]: cycle for cycle in cycles}  # each cycle once, by its highest level
    readers = {
        top: {other for other in members if other not in cycle and top in reached[other]}
        for top, cycle in members.items()
    }
    order = TopologicalSorter(readers).static_order()
    return tuple(Block(top, _ordered(members[top][:-1], reads)) for top in order)


def _reachable(start: str, edges: Mapping[str, Sequence[str]], within: set[str]) -> set[str]:
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


def check_match(weights: Mapping[str, Mapping[str, Tensor]], problems: Mapping[str, Problem]) -> None:
    """Raise CheckpointError unless saved weights, ``{level: {name: tensor}}``, fit the modules of a graph."""
    present = {
        f"{level}.{name}": list(tensor.shape)
        for level, problem in problems.items()
        for name, tensor in problem.module.state_dict().items()
    }
    saved = {f"{level}.{name}": list(tensor.shape) for level, some in weights.items() for name, tensor in some.items()}
    for key in [*present, *saved]:
        if saved.get(key) != present.get(key):
            raise CheckpointError(
                f"the checkpoint is of another recipe: {key} has shape {saved.get(key, 'none')} in it, "
                f"and {present.get(key, 'none')} here"
            )
