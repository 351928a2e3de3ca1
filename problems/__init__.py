"""The abstractions: Problem (a level), Graph (which level reads which), Engine (the schedule of updates)."""

from multilevel.problems.callbacks import Callback, Update
from multilevel.problems.checkpoint import Checkpointing, load_checkpoint, load_weights, save_checkpoint
from multilevel.problems.draws import score_function
from multilevel.problems.engine import Engine
from multilevel.problems.errors import (
    CheckpointError,
    DivergedError,
    GraphError,
    LossError,
    NestedChainError,
    NotFiniteError,
    ReadsError,
)
from multilevel.problems.graph import Graph
from multilevel.problems.hypergradient_noise import Reliability
from multilevel.problems.levels import Levels
from multilevel.problems.problem import Problem
from multilevel.problems.reliability import measure_reliability
from multilevel.problems.replay import ReplaySettings
from multilevel.problems.replay_results import Replay

__all__ = [
    "Callback",
    "CheckpointError",
    "Checkpointing",
    "DivergedError",
    "Engine",
    "Graph",
    "GraphError",
    "Levels",
    "LossError",
    "NestedChainError",
    "NotFiniteError",
    "Problem",
    "ReadsError",
    "Reliability",
    "Replay",
    "ReplaySettings",
    "Update",
    "load_checkpoint",
    "load_weights",
    "measure_reliability",
    "save_checkpoint",
    "score_function",
]
