"""Problem: one optimization level."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multilevel.problems.errors import GraphError
from multilevel.problems.levels import Levels
from multilevel.solvers import SettingError, Solver

LossValue = Tensor | tuple[Tensor, Mapping[str, Any]]


class Problem:
    """One level of a multilevel problem: its parameters, its loss, and how it is updated.

    Args:
        name: how other levels' losses call it (``levels.NAME``); a Python identifier.
        module: holds the level's parameters. Those that require a gradient and are in the optimizer (all that
            require one, where there is no optimizer) are the level's variables; no two levels share any.
        optimizer: any torch optimizer over this module's parameters; its parameter groups are kept.
        data: any iterable of batches, started again when it ends; None where the loss needs no batch. Tensors
            in a batch (tuples, lists, dicts, nested) are moved to the module's device.
        steps: updates of this level for each update of the next level up.
        solver: how a hypergradient passes through this level; needed where a level above depends on it.
        reads: names of the levels that the loss reads, if they are to be pinned; None has them found.
        scheduler: learning rate scheduler, stepped after every update of this level.
        clip_norm: largest norm of the gradient of an update, in all parameters together; None leaves it.
        accumulate: batches that one update averages over.
        solve_share: share of the rows of each batch that the solves at this level evaluate its loss on, with draws of
            their own: less time and memory, and a hypergradient with more noise. Its updates take all rows.

    Raises:
        SettingError: steps, clip_norm, accumulate or solve_share out of range, or a solver that goes through whole
            updates with a solve_share.
        GraphError: no loss, a name that is no identifier, an optimizer over parameters that the module has not, or an
            embedding with max_norm, or a module that is sharded or replicated over ranks by other means.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        data: Iterable[Any] | None = None,
        steps: int = 1,
        solver: Solver | None = None,
        reads: Iterable[str] | None = None,
        scheduler: Any = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        solve_share: float = 1.0,
    ) -> None:
        if type(self).loss is Problem.loss and type(self).outputs is Problem.outputs:
            raise GraphError(f"{type(self).__name__} defines no loss (nor outputs and criterion in its place)")
        if not name.isidentifier():
            raise GraphError(f"a level's name must be a Python identifier, as losses write levels.NAME; got {name!r}")
        _check_count(f"levels.{name}.steps", steps)
        _check_count(f"levels.{name}.accumulate", accumulate)
        if clip_norm is not None and not clip_norm > 0:
            raise SettingError(f"levels.{name}.clip_norm", clip_norm, "a number above 0, or null")
        self.name = name
        self.module = module
        self.optimizer = optimizer
        self.data = data
        self.steps = steps
        self.solver = solver
        self.reads = None if reads is None else tuple(reads)
        self.scheduler = scheduler
        self.clip_norm = clip_norm
        self.accumulate = accumulate
        self.check_share(solve_share, solver)
        self.solve_share = solve_share
        for key, part in module.named_modules():
            if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None:
                raise GraphError(
                    f"level {name!r}: the embedding {key!r} has max_norm, which writes to its weights whenever it is "
                    "evaluated; divide by the norm in the loss instead"
                )
        check_whole(name, module)
        own = {id(parameter) for parameter in module.parameters()}
        if optimizer is not None and not {id(parameter) for parameter in self._optimized()} <= own:
            raise GraphError(f"the optimizer of level {name!r} holds parameters that are not in its module")

    def begin(self) -> None:
        """Called before the first of the updates that each update of the next level up asks for.

        A level that starts anew every time, as in meta-learning, sets its variables and its optimizer's state here.
        """

    @property
    def starts_anew(self) -> bool:
        """Whether it defines ``begin``."""
        return type(self).begin is not Problem.begin

    def loss(self, levels: Levels, batch: Any, draws: Any) -> LossValue:
        """The level's objective: a scalar tensor, or (scalar, {metric name: number or scalar tensor}).

        Without side effects: it may be evaluated at any parameters, any number of times for one update.
        Everything random or discrete belongs into ``draw``; dropout and its like are replayed by themselves.
        A level may define ``outputs`` and ``criterion`` in its place.
        """
        return self.criterion(self.outputs(levels, batch, draws), levels, batch, draws)

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> Any:
        """What the level computes: a tensor or a list of them. With ``criterion``, it makes up the loss.

        A level that defines both can be solved with Gauss-Newton curvature.
        """
        raise NotImplementedError

    def criterion(self, outputs: Any, levels: Levels, batch: Any, draws: Any) -> LossValue:
        """The loss of ``outputs``, convex in them; the level's own parameters enter through the outputs alone."""
        raise NotImplementedError

    @property
    def declares_outputs(self) -> bool:
        """Whether the loss is made up of ``outputs`` and ``criterion``."""
        return type(self).outputs is not Problem.outputs and type(self).loss is Problem.loss

    def draw(self, levels: Levels, batch: Any) -> Any:
        """Everything random or discrete that the loss uses; called once for each update, without gradients."""
        return None

    def variables(self) -> dict[str, nn.Parameter]:
        """The parameters that this level trains, by their names in the module."""
        trained = None if self.optimizer is None else {id(parameter) for parameter in self._optimized()}
        return {
            name: parameter
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad and (trained is None or id(parameter) in trained)
        }

    def check_share(self, share: float, solver: Solver | None) -> None:
        """Raise SettingError if solves by ``solver`` cannot take this share of each batch."""
        setting = f"levels.{self.name}.solve_share"
        if not 0 < share <= 1:
            raise SettingError(setting, share, "a share above 0 and at most 1")
        if share < 1 and solver is not None and solver.recorded_steps:
            raise SettingError(setting, share, f"1, as {type(solver).__name__} goes through whole updates")

    def _optimized(self) -> list[Tensor]:
        assert self.optimizer is not None
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def check_whole(name: str, module: nn.Module) -> None:
    """Raise GraphError for a module that another engine spreads over ranks.

    Losses are evaluated at substituted parameters: the shards of ``fully_shard`` would be gathered by hooks of its own,
    whatever stands in their place, and ``DistributedDataParallel`` would average gradients that are averaged already.
    """
    sharding = sys.modules.get("torch.distributed.tensor")  # half a second to import; whoever shards has imported it
    if sharding is not None and any(isinstance(parameter, sharding.DTensor) for parameter in module.parameters()):
        raise GraphError(
            f"level {name!r}: its parameters are sharded (fully_shard), and losses cannot be evaluated at other values "
            "of shards; give the module whole: torchrun has every rank hold all of it and average derivatives"
        )
    if isinstance(module, nn.parallel.DistributedDataParallel):
        raise GraphError(f"level {name!r}: give the module itself, not DistributedDataParallel: the engine averages")


def _check_count(setting: str, value: int) -> None:
    if not (isinstance(value, int) and value >= 1):
        raise SettingError(setting, value, "a whole number of at least 1")
