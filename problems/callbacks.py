"""Callbacks: how a level's losses and metrics reach the screen, the event log and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multilevel.solvers import SolveReport


@dataclass(frozen=True)
class Update:
    """One real update of one level.

    Attributes:
        level: its name.
        step: updates of the top level done before it.
        loss: its loss before the update.
        metrics: further values that its loss reported.
        gradient_norm: norm of the hypergradient, before clipping.
        solves: report of the solve of each level that the hypergradient went through.
        cosine: between this hypergradient and the level's last one; None at the first, and for plain gradients.
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

    ``engine`` is the ``Engine`` that trains.

    Examples:
        >>> class Print(Callback):
        ...     def on_update(self, engine, update):
        ...         print(update.level, round(update.loss, 2))
        >>> Engine(graph, callbacks=[Print()]).run(steps=1)  # the graph of Graph's example
        weight 1.0
        target 7.84
    """

    def on_start(self, engine: Any, steps: int) -> None:
        """Before the first of ``steps`` steps."""

    def on_update(self, engine: Any, update: Update) -> None:
        """After each update of any level."""

    def on_skip(self, engine: Any, level: str, reason: str) -> None:
        """After an update of a level that could not be made: its loss or its hypergradient was not finite."""

    def on_notice(self, engine: Any, notice: str) -> None:
        """After the updates of a step, for each line that those who train should see; each is told once."""

    def on_step(self, engine: Any) -> None:
        """After each update of the top level."""

    def on_end(self, engine: Any) -> None:
        """After the last step."""
