"""Callbacks, which pass a level's losses and metrics to the screen, the event log and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multilevel.solvers import SolveReport


@dataclass(frozen=True)
class Update:
    """One update of one level.

    Attributes:
        level: its name.
        step: earlier updates of the top level.
        loss: the loss before the update.
        metrics: additional values that the loss reported.
        gradient_norm: norm of the hypergradient before clipping.
        solves: report of each solve for the hypergradient, by level.
        cosine: cosine between this hypergradient and the level's previous one; None for the first, and for plain
            gradients.
    """

    level: str
    step: int
    loss: float
    metrics: Mapping[str, float]
    gradient_norm: float
    solves: Mapping[str, SolveReport] = field(default_factory=dict)
    cosine: float | None = None


class Callback:
    """Override what you need; every method does nothing by default.

    ``engine`` is the training ``Engine``.

    Examples:
        >>> class Print(Callback):
        ...     def on_update(self, engine, update):
        ...         print(update.level, round(update.loss, 2))
        >>> Engine(graph, callbacks=[Print()]).run(steps=1)  # the graph of Graph's example
        weight 1.0
        target 7.84
    """

    def on_start(self, engine: Any, steps: int) -> None:
        """Called before the first of ``steps`` steps."""

    def on_update(self, engine: Any, update: Update) -> None:
        """Called after each update of any level."""

    def on_skip(self, engine: Any, level: str, reason: str) -> None:
        """Called after a skipped update of a level: its loss or hypergradient was not finite."""

    def on_notice(self, engine: Any, notice: str) -> None:
        """Called after the updates of a step for each line that the user should see; each line comes only once."""

    def on_step(self, engine: Any) -> None:
        """Called after each update of the top level."""

    def on_end(self, engine: Any) -> None:
        """Called after the last step."""
