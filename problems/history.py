"""What an engine keeps of the updates of a level."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from multilevel.problems.evaluation.recorded_batch import RecordedBatches
from multilevel.problems.recording import RecordedUpdate
from multilevel.solvers import ProductChoice
from multilevel.solvers.vectors import Tensors


@dataclass
class LevelHistory:
    """What later updates and solves use of a level's earlier updates.

    Attributes:
        record: what the last update used; None before the first.
        updates: the last ones of this step of the top level, for solvers that go through updates; empty elsewhere.
        solutions: of the levels that the last hypergradient went through, where their solver starts from them.
        hypergradient: the last one that went through other levels; None before the first.
        products: which products solves at the level take, where that is left to them.
        skipped: updates in a row that were skipped last.
    """

    record: RecordedBatches | None = None
    updates: deque[RecordedUpdate] = field(default_factory=deque)
    solutions: dict[str, Tensors] = field(default_factory=dict)
    hypergradient: Tensors | None = None
    products: ProductChoice = field(default_factory=ProductChoice)
    skipped: int = 0
