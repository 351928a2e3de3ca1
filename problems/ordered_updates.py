"""Weights the paths of a hypergradient by the updates through which they act in one update of its level."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache

import numpy as np
from torch import Tensor

from multilevel.problems.graph import Graph
from multilevel.solvers import SolveError, Solver
from multilevel.solvers.vectors import Tensors, scaled

#: Levels in the order of their updates.
Chain = tuple[str, ...]
#: Of each level below another, bottom first: its name, its updates per update of the next level up, and whether it
#: starts anew before them.
Schedule = tuple[tuple[str, int, bool], ...]


def schedule_below(graph: Graph, name: str) -> Schedule:
    problems = (graph.problems[level] for level in graph.names[: graph.names.index(name)])
    return tuple((problem.name, problem.steps, problem.starts_anew) for problem in problems)


@cache
def ordered_updates(schedule: Schedule, chain: Chain) -> int:
    """The number of ways to choose one update of each level of ``chain``, each later than the one before, in one update
    of the level above ``schedule``.

    An update that a level's new start undoes counts only if the next level of the chain has read it before.

    Examples:
        Two pretraining updates, then one finetuning update, three times per update of the level above:

        >>> schedule = (("pretrain", 2, False), ("finetune", 3, False))
        >>> ordered_updates(schedule, ("pretrain",)), ordered_updates(schedule, ("pretrain", "finetune"))
        (6, 12)
    """
    # Entry [i, j]: the ways to extend a choice for the chain's first i levels to its first j.
    unchanged = np.identity(len(chain) + 1, dtype=object)
    ways = unchanged
    for name, steps, starts_anew in schedule:
        start, update = unchanged.copy(), unchanged.copy()
        if name in chain:
            place = chain.index(name)
            update[place, place + 1] = 1
            start[place + 1, place + 1] = int(not starts_anew)
        ways = start @ np.linalg.matrix_power(ways @ update, steps)
    return int(ways[0, -1])


class PathCotangents:
    """The cotangents of an adjoint pass, kept apart by the chain of levels on their way whose solver counts updates.

    Such a solver's response is that of one update of its level, and in training a path acts once for every ordered
    choice of one update of each of its levels. This number is not a product over the levels, so cotangents of different
    chains are added only on arrival at the level of the hypergradient. Without such solvers, all have the empty chain.

    Args:
        graph: the levels.
        name: the level whose hypergradient it is.
        direct: the direct gradient of its loss for each level.
        solvers: the solvers of the levels on the way.
    """

    def __init__(self, graph: Graph, name: str, direct: Mapping[str, Tensors], solvers: Mapping[str, Solver]) -> None:
        self.name = name
        self._graph = graph
        counted = {level: count for level in graph.passes(name) if (count := solvers[level].counted_outer_steps)}
        self._counting, self._outer_steps = set(counted), max(counted.values(), default=0)
        if len(set(counted.values())) > 1:
            raise SolveError(f"scale=null needs the same outer_steps at every level; got {counted}")
        self._chains: dict[Chain, dict[str, Tensors]] = {(): dict(direct)}

    def take(self, levels: Collection[str], read_levels: Collection[str]) -> list[tuple[Chain, dict[str, Tensors]]]:
        """Remove the cotangents at ``levels``, which are solved together and read ``read_levels``.

        Returns:
            The cotangents by level, separately for each chain, and the chain with which to ``add`` their contributions.
            If these reach only the level of the hypergradient, the sum weighted by number, so that one solve is enough.
        """
        taken: list[tuple[Chain, dict[str, Tensors]]] = []
        for chain, cotangents in self._chains.items():
            arriving = {level: cotangents.pop(level) for level in levels if level in cotangents}
            if arriving:
                taken.append(((*self._counting.intersection(levels), *chain), arriving))
        if not taken or not self._counting or not set(read_levels) <= {self.name}:
            return taken
        total: dict[str, Tensors] = {}
        for chain, arriving in taken:
            _add(total, {level: self._weighted(chain, cotangent) for level, cotangent in arriving.items()})
        return [((), total)]

    def add(self, chain: Chain, contributions: Mapping[str, Tensors]) -> None:
        _add(self._chains.setdefault(chain, {}), contributions)

    def total(self) -> Tensors:
        """The weighted sum of what has arrived at the level of the hypergradient."""
        if not self._counting:
            return self._chains[()][self.name]
        total: dict[str, Tensors] = {}
        for chain, cotangents in self._chains.items():
            if self.name in cotangents:
                _add(total, {self.name: self._weighted(chain, cotangents[self.name])})
        return total[self.name]

    def _weighted(self, chain: Chain, cotangent: Tensors) -> dict[str, Tensor]:
        schedule = (*schedule_below(self._graph, self.name), (self.name, self._outer_steps, False))
        return scaled(cotangent, float(ordered_updates(schedule, chain)))


def _add(total: dict[str, Tensors], terms: Mapping[str, Tensors]) -> None:
    for level, term in terms.items():
        total[level] = {key: total[level][key] + value for key, value in term.items()} if total.get(level) else term
