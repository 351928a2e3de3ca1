"""Groups levels that are solved together, and orders them for an adjoint pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter


@dataclass(frozen=True)
class LevelBlock:
    """A level together with the levels below it that read each other with it, whose response is part of its gradient.

    Attributes:
        name: the level.
        inner: the blocks inside, in the order in which they are solved; empty if the level's gradient is the plain one.
    """

    name: str
    inner: tuple[LevelBlock, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """All levels of the block in the order in which they are solved, ending with its own."""
        return (*(level for block in self.inner for level in block.levels), self.name)


def ordered(levels: Sequence[str], reads: Mapping[str, Sequence[str]]) -> tuple[LevelBlock, ...]:
    """The blocks of ``levels`` (bottom first), each after every block that reads a level of it.

    Levels that read each other in a cycle form one block, that of the highest level.
    """
    edges = {level: [target for target in reads[level] if target in levels] for level in levels}
    reached = {level: {level} | reachable(level, edges, set(levels)) for level in levels}
    cycles = [[peer for peer in levels if peer in reached[level] and level in reached[peer]] for level in levels]
    members = {cycle[-1]: cycle for cycle in cycles}  # each cycle once, at its highest level
    readers = {
        top: {reader for reader in members if reader not in cycle and top in reached[reader]}
        for top, cycle in members.items()
    }
    order = TopologicalSorter(readers).static_order()
    return tuple(LevelBlock(top, ordered(members[top][:-1], reads)) for top in order)


def reachable(start: str, edges: Mapping[str, Sequence[str]], within: set[str]) -> set[str]:
    """The levels of ``within`` that ``start`` reaches by edges inside ``within``."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for level in edges[waiting.pop()]:
            if level in within and level not in reached:
                reached.add(level)
                waiting.append(level)
    return reached
