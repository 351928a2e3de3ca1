"""The part of a level's updates that an engine keeps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from multilevel.problems.evaluation.recorded_batch import RecordedBatches
from multilevel.problems.recording import RecordedUpdate
from multilevel.solvers import ProductChoice
from multilevel.solvers.stages import Key
from multilevel.solvers.vectors import Tensors


@dataclass
class LevelHistory:
    """The data of a level's earlier updates that later updates and solves use.

    Attributes:
        record: the record of the last update; None before the first.
        updates: the last updates, for solvers that differentiate updates; otherwise empty.
        outer_step: the number of the top level's current update, counted since the start or the oldest of ``updates``.
        restarted: keys of the parameters and state that the level's last ``begin`` reset, until the next update.
        solutions: solutions at the levels that the last hypergradient passed through, if their solvers start from them.
        hypergradient: the last one that passed through other levels; None before the first.
        gradient: the gradient of the last update, if the level's solver counts updates and it was not clipped.
        products: the choice of products for solves at the level, if left to them.
        skipped: number of consecutive updates skipped most recently.
    """

    record: RecordedBatches | None = None
    updates: deque[RecordedUpdate] = field(default_factory=deque)
    outer_step: int = 0
    restarted: frozenset[Key] = frozenset()
    solutions: dict[str, Tensors] = field(default_factory=dict)
    hypergradient: Tensors | None = None
    gradient: Tensors | None = None
    products: ProductChoice = field(default_factory=ProductChoice)
    skipped: int = 0

    def begin_outer_step(self, kept: int) -> None:
        """Count an update of the top level, and drop updates before the last ``kept`` of these."""
        self.outer_step += 1
        while self.updates and self.updates[0].outer_step <= self.outer_step - kept:
            self.updates.popleft()

    def within(self, outer_steps: int) -> list[RecordedUpdate]:
        """The updates within the top level's last ``outer_steps`` updates, the current one included."""
        return [update for update in self.updates if update.outer_step > self.outer_step - outer_steps]
