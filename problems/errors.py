"""Named errors of problems, graphs and engines."""

from __future__ import annotations

from multilevel.solvers.errors import MultilevelError


class GraphError(MultilevelError):
    """Levels that do not fit together: names, shared parameters, optimizers, missing solvers."""


class ReadsError(GraphError):
    """A pinned ``reads`` that differs from what the loss was found to read."""


class NestedChainError(GraphError):
    """Levels below another one that read each other in a cycle."""


class LossError(MultilevelError):
    """A loss that is not a scalar, or not finite."""


class NotFiniteError(LossError):
    """A loss or a hypergradient of inf or nan: the update is skipped."""


class DivergedError(MultilevelError):
    """Too many updates in a row of one level had to be skipped."""


class CheckpointError(MultilevelError):
    """A checkpoint that is not there, cut off, or of another run."""


class ReplicaError(MultilevelError):
    """Ranks that train together and have lost each other."""
