"""The three levels of the guided autoencoder on Betty 0.2.1, from the modules, losses and batches of a recipe.

Betty evaluates ``training_step`` again at perturbed weights; to make both libraries do the same work, the masks of a
batch are held while it is the current batch (Betty itself draws again, see docs/peers.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from multilevel.problems import Problem
from multilevel.problems.batches import Batches
from multilevel.problems.levels import Levels
from multilevel.recipes.guided_mae import GuidedMae

BETTY_RADIUS = 0.01  # the default of Betty's darts_alpha

try:
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem
except ImportError as error:
    MISSING = str(error)
    ImplicitProblem = object
else:
    MISSING = ""


class Stream:
    """A level's batches without end, in the order in which multilevel takes them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batches.next()


class BettyLevel(ImplicitProblem):
    """One level: the loss of a level of multilevel, on the modules themselves.

    Args:
        level: whose loss, draws, module and optimizer (Adam) are taken.
        levels: all modules.
        batches: batches of this level.
        told: called with (level, loss) once for each update.
        config: Betty's.
    """

    def __init__(
        self, level: Problem, levels: Levels, batches: Batches, told: Callable[[str, float], None], config: Any
    ) -> None:
        super().__init__(level.name, config, level.module, level.optimizer, train_data_loader=Stream(batches))
        self.level = level
        self.levels = levels
        self.told = told
        self.drawn_for: Any = None
        self.draws: Any = None

    def training_step(self, batch: Any) -> Tensor:
        first = batch is not self.drawn_for
        if first:
            with torch.no_grad():
                self.draws = self.level.draw(self.levels, batch)
            self.drawn_for = batch
        loss, _ = self.level.loss(self.levels, batch, self.draws)
        if first:
            self.told(self.level.name, loss.item())
        return loss

    def trainable_parameters(self) -> list[Tensor]:
        return list(self.level.variables().values())


class BettyRun:
    """Betty's engine on a recipe's levels, with darts at both lower levels and both paths that its search finds.

    Args:
        recipe: a recipe with paths=both, and Adam at every level.
        radius: radius of the finite differences, times the norm of the direction.
        told: called with (level, loss) once for each update.
    """

    def __init__(
        self,
        recipe: GuidedMae,
        radius: float = BETTY_RADIUS,
        told: Callable[[str, float], None] = lambda level, loss: None,
    ) -> None:
        logging.disable(logging.INFO)  # Betty describes every problem
        levels = Levels(recipe.modules)
        configs = {
            name: Config(type="darts", darts_alpha=radius, unroll_steps=level.steps)
            for name, level in recipe.graph.problems.items()
        }
        configs["mask"] = Config(retain_graph=True)  # its loss is differentiated once for each path
        self.levels = {
            name: BettyLevel(level, levels, recipe.graph.batches[name], told, configs[name])
            for name, level in recipe.graph.problems.items()
        }
        pretrain, finetune, mask = (self.levels[name] for name in ("pretrain", "finetune", "mask"))
        dependencies = {"u2l": {mask: [pretrain]}, "l2u": {pretrain: [finetune, mask], finetune: [mask]}}
        self.engine = Engine(list(self.levels.values()), EngineConfig(), dependencies)
        self.updates = recipe.graph.problems["pretrain"].steps
        self.engine.train()
        logging.disable(logging.NOTSET)

    @property
    def paths(self) -> list[list[str]]:
        """The paths of the mask level's hypergradient, by level names, as Betty's search has found them."""
        return [[level.name for level in path] for path in self.levels["mask"]._paths]

    def iterate(self) -> None:
        """One outer iteration."""
        for _ in range(self.updates):
            self.engine.global_step += 1
            self.engine.train_step()
