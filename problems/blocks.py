"""Levels that are solved together, and the order in which an adjoint pass goes through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter


@dataclass(frozen=True)
class LevelBlock:
    """A level, and those below it that read it and that it reads: their response is part of its own gradient.

    Attributes:
        name: the level.
        inner: the blocks within, in the order in which they are solved; empty where its gradient is the plain one.
    """

    name: str
    inner: tuple[LevelBlock, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """All its levels, in the order in which they are solved; its own last."""
        return (*(level for block in self.inner for level in block.levels), self.name)


def ordered(levels: Sequence[str], reads: Mapping[str, Sequence[str]]) -> tuple[LevelBlock, ...]:
    """Blocks of ``levels`` (bottom first), each after every one that reads a level of it.

    Levels that read each other in a cycle are one block: that of the highest of them.
    """
    edges = {level: [target for target in reads[level] if target in levels] for level in levels}
    reached = {level: {level} | reachable(level, edges, set(levels)) for level in levels}
    cycles = [[peer for peer in levels if peer in reached[level] and level in reached[peer]] for level in levels]
    members = {cycle[-1]: cycle for cycle in cycles}  # each cycle once, by its highest level
    readers = {
        top: {reader for reader in members if reader not in cycle and top in reached[reader]}
        for top, cycle in members.items()
    }
    order = TopologicalSorter(readers).static_order()
    return tuple(LevelBlock(top, ordered(members[top][:-1], reads)) for top in order)


def reachable(start: str, edges: Mapping[str, Sequence[str]], within: set[str]) -> set[str]:
    """Levels of ``within`` that ``start`` reaches by edges between levels of ``within``."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for level in edges[waiting.pop()]:
            if level in within and level not in reached:
                reached.add(level)
                waiting.append(level)
    return reached
