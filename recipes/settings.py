"""The typed settings that every run has, and those of one level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from multilevel.problems.evaluation.evaluator import PRECISIONS
from multilevel.solvers import SettingError

ENGINES = ("multilevel", "betty")


@dataclass(kw_only=True)
class LevelSettings:
    """How one level is updated; see ``multilevel.Problem`` for what is passed on to it.

    Args:
        steps: updates for each one of the next level up.
        optimizer: adamw, adam or sgd.
        learning_rate: the largest, after the warmup.
        weight_decay: of matrices; biases, norms and other vectors have none.
        schedule: cosine (to 0 at the last update) or constant.
        warmup: share of the updates over which the learning rate rises, 0 to 1.
        clip_norm: largest norm of the gradient of an update; None leaves it.
        accumulate: batches that one update averages over.
    """

    steps: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup: float
    clip_norm: float | None
    accumulate: int


@dataclass(kw_only=True)
class LowerLevelSettings(LevelSettings):
    """A level that hypergradients pass through.

    Args:
        solver: ``{"name": ..., option: ...}``; None takes the solver of all levels.
        solve_share: share of each batch that solves at this level take.
    """

    solver: Any
    solve_share: float = 1.0


@dataclass(kw_only=True)
class CheckpointSettings:
    """How often a checkpoint is written.

    Args:
        every: steps between two.
    """

    every: int


@dataclass(kw_only=True)
class RunSettings:
    """What every run has. A recipe's settings are a subclass.

    Args:
        recipe: its name.
        solver: of every level that names none of its own, ``{"name": ..., option: ...}``.
        steps: updates of the top level.
        seed: of the initial weights and of everything random after them.
        device: auto, or what torch.device takes.
        precision: float32 or bf16.
        threads: CPU threads that each operation of training is spread over; None: as suits the recipe.
        output: the run folder; None makes a name.
        approximate: see ``Graph``.
        diagnose: steps between comparisons of the top level's hypergradient with a reference; 0: none.
        checkpoint: how often.
        max_skipped: updates in a row of a level that may be skipped, as its loss or hypergradient is not finite.
        compile: whether calls on levels are compiled in updates, where they can be.
        check: see ``Engine``.
        reuse: of earlier versions; it changed no number, and has no effect any more.
        loggers: where else the numbers of every step go.
        objective: path of the number in summary.json that a sweeper minimizes; None: the top level's last loss.
        engine: multilevel, or betty (see ``multilevel.betty.BettyEngine``).
        evaluate: whether a run ends with scores, and with what the recipe compares itself with.
    """

    recipe: str
    solver: Any
    steps: int
    seed: int
    device: str
    precision: str
    output: str | None
    approximate: bool
    diagnose: int
    checkpoint: CheckpointSettings
    max_skipped: int = 10
    threads: int | None = None
    compile: bool = False
    check: bool = True
    reuse: bool = False
    loggers: list[str] = field(default_factory=list)
    objective: str | None = None
    engine: str = "multilevel"
    evaluate: bool

    @property
    def data_name(self) -> str | None:
        """What the data set is called; None where the recipe has no choice of it."""
        data = getattr(self, "data", None)
        return None if data is None else data.name

    def validate(self) -> None:
        """Raise SettingError for the first setting that cannot work."""
        require("steps", self.steps, self.steps >= 1, "a whole number of at least 1")
        require("seed", self.seed, 0 <= self.seed < 2**32, "a whole number from 0 to 4294967295")
        require("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        threads = self.threads
        require("threads", threads, threads is None or threads >= 1, "a whole number of at least 1, or null")
        every = self.checkpoint.every
        require("checkpoint.every", every, every >= 1, "a whole number of steps of at least 1")
        require("max_skipped", self.max_skipped, self.max_skipped >= 0, "a whole number of updates of at least 0")
        require("diagnose", self.diagnose, self.diagnose >= 0, "a whole number of steps, or 0 for never")
        require("engine", self.engine, self.engine in ENGINES, f"one of {', '.join(ENGINES)}")
        require("compile", self.compile, self.engine == "multilevel" or not self.compile, "false with engine=betty")
        chosen_device(self.device)


def require(setting: str, got: object, usable: bool, expected: str) -> None:
    """Raise SettingError unless ``usable``."""
    if not usable:
        raise SettingError(setting, got, expected)


def chosen_device(name: str) -> torch.device:
    """The device that a setting names; auto is a GPU where there is one.

    Raises:
        SettingError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError("device", name, "auto, or a device that this machine has, such as cpu") from error
    return device
