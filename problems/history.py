"""The part of a level's updates that an engine keeps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from multilevel.problems.evaluation.recorded_batch import RecordedBatches
from multilevel.problems.recording import RecordedUpdate
from multilevel.solvers import ProductChoice
from multilevel.solvers.vectors import Tensors


@dataclass
class LevelHistory:
    """The data of a level's earlier updates that later updates and solves use.

    Attributes:
        record: the record of the last update; None before the first.
        updates: the last updates in this step of the top level, for solvers that differentiate updates; otherwise
            empty.
        solutions: solutions at the levels that the last hypergradient passed through, if their solvers start from them.
        hypergradient: the last one that passed through other levels; None before the first.
        products: the choice of products for solves at the level, if left to them.
        skipped: number of consecutive updates skipped most recently.
    """

    record: RecordedBatches | None = None
    updates: deque[RecordedUpdate] = field(default_factory=deque)
    solutions: dict[str, Tensors] = field(default_factory=dict)
    hypergradient: Tensors | None = None
    products: ProductChoice = field(default_factory=ProductChoice)
    skipped: int = 0
