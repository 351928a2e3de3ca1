"""The typed settings of every run and of one level."""

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
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup"}  # names in transformers


@dataclass(kw_only=True)
class LevelSettings:
    """Settings for the updates of one level; see ``multilevel.Problem``.

    Args:
        steps: updates per update of the next level up.
        optimizer: adamw, adam or sgd.
        learning_rate: peak learning rate, reached after the warmup.
        weight_decay: weight decay of matrices; biases, norm parameters and other vectors have none.
        schedule: cosine (to 0 at the last update) or constant.
        warmup: share of the updates over which the learning rate rises, 0 to 1.
        clip_norm: largest norm of the gradient of an update; None does not clip.
        accumulate: batches to average over in one update.
        momentum: weight of earlier gradients in the average that an update follows: Adam's first beta, SGD's momentum;
            None: 0.9 for adamw and adam, 0 for sgd.
    """

    steps: Count
    optimizer: Annotated[str, OneOf(*OPTIMIZERS)]
    learning_rate: PositiveNumber
    weight_decay: NonNegative
    schedule: Annotated[str, OneOf(*SCHEDULES)]
    warmup: Annotated[float, AtLeast(0), Below(1)]
    clip_norm: PositiveNumber | None
    accumulate: Count
    momentum: Annotated[float, AtLeast(0), Below(1)] | None = None


@dataclass(kw_only=True)
class LowerLevelSettings(LevelSettings):
    """A level that hypergradients pass through.

    Args:
        solver: ``{"name": ..., option: ...}``; None takes the solver of all levels.
        solve_share: share of each batch for the solves at this level.
    """

    solver: Any
    solve_share: PositiveShare = 1.0


@dataclass(kw_only=True)
class CheckpointSettings:
    """Settings for checkpoints.

    Args:
        every: steps between two checkpoints.
        verify: whether to refuse a checkpoint without digests.json, whose damage nothing shows; false loads it.
    """

    every: Count
    verify: bool = True


@dataclass(kw_only=True)
class RunSettings:
    """Settings of every run; a recipe's settings are a subclass.

    Args:
        recipe: name of the recipe.
        solver: solver of every level without its own, ``{"name": ..., option: ...}``.
        steps: updates of the top level.
        seed: seed of the initial weights and all later randomness.
        device: auto, or a name for torch.device.
        precision: float32 or bf16.
        threads: CPU threads per operation in training; None: chosen for the recipe.
        output: the run folder; None generates a name.
        approximate: omit the response of inner levels if a solver cannot include it; see ``Graph``.
        diagnose: steps between comparisons of the top level's hypergradient with a reference and, from 20 updates on,
            with those of earlier updates; 0: none.
        checkpoint: how often to write checkpoints.
        max_skipped: consecutive updates of a level that may be skipped because its loss or hypergradient is not finite.
        compile: whether to compile calls on levels in updates where possible.
        check: whether to compare the products of each level's first hypergradient with another form, see ``Engine``.
        reuse: kept for compatibility; no effect.
        loggers: additional loggers for the metrics of every step.
        objective: path of the number in summary.json that a sweeper minimizes; None: the top level's last loss.
        engine: multilevel, or betty (see ``multilevel.betty.BettyEngine``).
        evaluate: whether a run ends with an evaluation and the recipe's baselines.
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
        """The data set's name; None if the recipe offers no choice."""
        data = getattr(self, "data", None)
        return None if data is None else data.name

    def validate(self) -> None:
        """Raise SettingError for the first unusable setting."""
        check(self)
        require("compile", self.compile, self.engine == "multilevel" or not self.compile, "false with engine=betty")
        chosen_device(self.device)


def chosen_device(name: str) -> torch.device:
    """The device for a setting; auto takes a GPU if there is one.

    Raises:
        SettingError: this machine lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingError("device", name, "auto, or a device of this machine, such as cpu") from error
    return device
