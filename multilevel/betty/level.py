"""A level of a graph as a problem of Betty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from multilevel.betty.solvers import BETTY_COMMAND, BettyError, BettyMissingError, BettySolver
from multilevel.problems.evaluation.recorded_batch import RecordedBatch
from multilevel.problems.problem import Problem

try:
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine as BettyOwnEngine
    from betty.logging import get_logger
    from betty.problems import ImplicitProblem
except ImportError as error:
    raise BettyMissingError(f"the bridge to Betty needs betty-ml ({error}): {BETTY_COMMAND}") from error


__all__ = ["BettyLevel", "BettyOwnEngine", "EngineConfig", "ImplicitProblem", "get_logger"]


class Bridge(Protocol):
    """The engine that a problem belongs to, as the problem sees it."""

    def next_part(self, name: str) -> RecordedBatch:
        """The next batch of a level, with its draws."""

    def evaluate(self, level: BettyLevel, part: RecordedBatch, fresh: bool) -> Tensor:
        """The loss of a level."""

    def report_update(self, level: BettyLevel, loss: float) -> None:
        """Report an update."""


class BettyLevel(ImplicitProblem):
    """A level of a graph as a problem of Betty: the same module, parameters and loss.

    Args:
        bridge: evaluates the loss.
        level: the level.
        solver: how hypergradients pass through it.
        retain_graph: whether its hypergradient goes through levels below it.
    """

    def __init__(self, bridge: Bridge, level: Problem, solver: BettySolver, retain_graph: bool) -> None:
        config = Config(
            unroll_steps=level.steps,
            gradient_clipping=level.clip_norm or 0.0,
            retain_graph=retain_graph,
            **solver.config(),
        )
        # Betty makes every name an attribute of the other problems, where it must not clash.
        super().__init__(f"level_{level.name}", config, level.module, level.optimizer, level.scheduler)
        self.bridge = bridge
        self.level = level
        self.solver = solver
        self.fresh = False  # whether the next evaluation of the loss belongs to an update
        self.metrics: Mapping[str, float] = {}
        self.norm = 0.0

    def get_batch(self) -> RecordedBatch:
        self.fresh = True
        return self.bridge.next_part(self.level.name)

    def training_step(self, batch: RecordedBatch) -> Tensor:
        fresh, self.fresh = self.fresh, False
        return self.bridge.evaluate(self, batch, fresh)

    def trainable_parameters(self) -> list[Tensor]:
        """All parameters except frozen ones, which Betty would differentiate too."""
        return list(self.level.variables().values())

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, which Betty would drop."""
        return [dict(group) for group in self.optimizer.param_groups]

    def patch_module(self) -> None:
        """Leave the module where it is; Betty would move it to a GPU."""

    def patch_optimizer(self) -> None:
        if self.level.optimizer is None:
            raise BettyError(f"level {self.level.name!r} has no optimizer, which Betty needs")
        kind = type(self.level.optimizer).__name__
        try:
            super().patch_optimizer()
        except TypeError as error:
            raise BettyError(
                f"Betty rebuilds the optimizer of level {self.level.name!r} from its defaults, which "
                f"{kind} refuses ({error}): use adam or sgd"
            ) from error
        self.optimizer.load_state_dict(self.level.optimizer.state_dict())
        self.level.optimizer = self.optimizer

    def patch_scheduler(self) -> None:
        try:
            super().patch_scheduler()
        except (AttributeError, TypeError) as error:
            kind = type(self.level.scheduler).__name__
            raise BettyError(f"Betty cannot rebuild the {kind} of level {self.level.name!r} ({error})") from error
        self.level.scheduler = self.scheduler

    def one_step_descent(self, batch: Any = None) -> dict[str, Any]:
        losses: dict[str, Any] = super().one_step_descent(batch)
        self.bridge.report_update(self, losses["loss"])
        return losses

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        gradients = [parameter.grad for parameter in self.trainable_parameters() if parameter.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(gradients).item()
        super().optimizer_step(*arguments, **keywords)
