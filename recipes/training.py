"""Creates the optimizers, schedules and solvers of a recipe's levels from their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from multilevel.recipes.settings import OPTIMIZERS, SCHEDULES, LevelSettings, LowerLevelSettings
from multilevel.solvers import SOLVERS, SettingError, Solver
from multilevel.solvers.ranges import check
from multilevel.solvers.registry import build


def level_arguments(
    levels: Mapping[str, LevelSettings], solver: Mapping[str, Any], name: str, module: nn.Module, steps: int
) -> dict[str, Any]:
    """Arguments for a Problem from settings: optimizer, schedule, solver, and the rest.

    Args:
        levels: the levels' settings, bottom level first.
        solver: solver of every level without its own.
        name: the level.
        module: its module.
        steps: updates of the top level.

    Raises:
        SettingError: an unknown optimizer, schedule or solver, or a number out of range.
    """
    settings = levels[name]
    check(settings, f"levels.{name}.")
    optimizer = _optimizer(settings, module)
    updates = steps
    for level in list(levels)[list(levels).index(name) : -1]:
        updates *= levels[level].steps
    level_solver = settings.solver if isinstance(settings, LowerLevelSettings) else None
    return {
        "optimizer": optimizer,
        "scheduler": get_scheduler(SCHEDULES[settings.schedule], optimizer, round(settings.warmup * updates), updates),
        "solver": _solver(f"levels.{name}.solver", level_solver) if level_solver else _solver("solver", solver),
        "steps": settings.steps,
        "clip_norm": settings.clip_norm,
        "accumulate": settings.accumulate,
        "solve_share": settings.solve_share if isinstance(settings, LowerLevelSettings) else 1.0,
    }


def _optimizer(settings: LevelSettings, module: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {"lr": settings.learning_rate, "fused": True}  # one pass over each parameter
    if settings.momentum is not None:
        adam = settings.optimizer != "sgd"
        options |= {"betas": (settings.momentum, 0.999)} if adam else {"momentum": settings.momentum}
    return OPTIMIZERS[settings.optimizer](groups, **options)


def _solver(setting: str, options: Mapping[str, Any]) -> Solver:
    arguments = {key: value for key, value in options.items() if key != "name"}
    try:
        return build(setting, SOLVERS, options["name"], arguments)
    except SettingError as error:  # a solver does not know the full names of its settings
        name = setting + error.setting.removeprefix("solver") if error.setting.startswith("solver.") else error.setting
        raise SettingError(name, error.got, error.expected) from None
