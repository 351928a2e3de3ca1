"""The named errors of problems, graphs and engines."""

from __future__ import annotations

from multilevel.solvers.errors import MultilevelError


class GraphError(MultilevelError):
    """The levels are inconsistent: names, shared parameters, optimizers, missing solvers."""


class ReadsError(GraphError):
    """A pinned ``reads`` differs from what the loss reads."""


class NestedChainError(GraphError):
    """Levels below another level read each other in a cycle."""


class LossError(MultilevelError):
    """A loss is not a scalar, or not finite."""


class NotFiniteError(LossError):
    """A loss or a hypergradient is inf or nan: the update is skipped."""


class DivergedError(MultilevelError):
    """Too many consecutive updates of a level were skipped."""


class CheckpointError(MultilevelError):
    """A checkpoint is missing, truncated, or belongs to another run."""


class RankError(MultilevelError):
    """Some of the ranks that train together have failed; all of them raise it."""


class ReplicaError(MultilevelError):
    """Ranks that train together have lost contact."""
