"""The typed settings that every run has, and those of one level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from multilevel.problems.evaluation.evaluator import PRECISIONS
from multilevel.solvers import SettingError
from multilevel.solvers.ranges import (
    AtLeast,
    Below,
    Count,
    NonNegative,
    OneOf,
    PositiveNumber,
    PositiveShare,
    Seed,
    check,
    require,
)

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup"}  # as transformers names them


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

    steps: Count
    optimizer: Annotated[str, OneOf(*OPTIMIZERS)]
    learning_rate: PositiveNumber
    weight_decay: NonNegative
    schedule: Annotated[str, OneOf(*SCHEDULES)]
    warmup: Annotated[float, AtLeast(0), Below(1)]
    clip_norm: PositiveNumber | None
    accumulate: Count


@dataclass(kw_only=True)
class LowerLevelSettings(LevelSettings):
    """A level that hypergradients pass through.

    Args:
        solver: ``{"name": ..., option: ...}``; None takes the solver of all levels.
        solve_share: share of each batch that solves at this level take.
    """

    solver: Any
    solve_share: PositiveShare = 1.0


@dataclass(kw_only=True)
class CheckpointSettings:
    """How often a checkpoint is written.

    Args:
        every: steps between two.
    """

    every: Count


@dataclass(kw_only=True)
class RunSettings:
    """Settings of every run. A recipe's settings are a subclass.

    Args:
        recipe: its name.
        solver: of every level that names none, ``{"name": ..., option: ...}``.
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
    steps: Count
    seed: Seed
    device: str
    precision: Annotated[str, OneOf(*PRECISIONS)]
    output: str | None
    approximate: bool
    diagnose: Annotated[int, AtLeast(0)]
    checkpoint: CheckpointSettings
    max_skipped: Annotated[int, AtLeast(0)] = 10
    threads: Count | None = None
    compile: bool = False
    check: bool = True
    reuse: bool = False
    loggers: list[str] = field(default_factory=list)
    objective: str | None = None
    engine: Annotated[str, OneOf("multilevel", "betty")] = "multilevel"
    evaluate: bool

    @property
    def data_name(self) -> str | None:
        """The data set's name; None where the recipe has no choice of it."""
        data = getattr(self, "data", None)
        return None if data is None else data.name

    def validate(self) -> None:
        """Raise SettingError for the first setting that cannot work."""
        check(self)
        require("compile", self.compile, self.engine == "multilevel" or not self.compile, "false with engine=betty")
        chosen_device(self.device)


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
