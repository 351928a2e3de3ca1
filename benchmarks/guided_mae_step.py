"""Compares one outer iteration of the guided autoencoder with the same steps without a hypergradient: time and peak
memory.

An iteration is 2 pretraining steps, 1 finetuning step and 1 mask step. The plain side is written by hand in PyTorch:
the same modules, optimizers, batches and masks, the masking network's probabilities as constants, no graph through the
encoder during finetuning, and for the mask step that level's loss and its gradient in head and encoder. The sides take
turns in one process; memory is the growth of the resident size, each side in its own process.

    python benchmarks/guided_mae_step.py data=cifar10 data.path=DIR
    python benchmarks/guided_mae_step.py --rounds 20 precision=bf16 solver=neumann
    python benchmarks/guided_mae_step.py --other "solver=identity solver.product=forward"

With --other, the engine's sides run once more with those settings, as ``direct other`` and ``both other``.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext

import torch
from side_by_side import Iterate, Spread, add_clock, alternate, conditions, in_own_process, ratio, resident_growth
from torch.nn import functional as F

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems.levels import Levels
from multilevel.recipes.guided_mae import GuidedMae
from multilevel.runs.training import new_engine

SIDES = ("plain", "direct", "both")


def recipe_of(overrides: list[str], paths: str) -> GuidedMae:
    recipe = build_recipe(compose_config(["data=cifar10", "model=small", *overrides, f"paths={paths}"]))
    assert isinstance(recipe, GuidedMae)
    return recipe


def engine_iteration(recipe: GuidedMae) -> Iterate:
    """The iteration as multilevel does it."""
    engine = new_engine(recipe)
    return lambda: engine.run(1)


class PlainSteps:
    """The steps with no hypergradient."""

    def __init__(self, recipe: GuidedMae) -> None:
        self.levels, self.batches, self.modules = recipe.graph.problems, recipe.graph.batches, recipe.modules
        self.modules_of_levels = Levels(recipe.modules)
        self.device = recipe.device.type
        self.mixed = recipe.settings.precision == "bf16"

    def iterate(self) -> None:
        for _ in range(self.levels["pretrain"].steps):
            self.pretrain()
        self.finetune()
        self.mask()

    def pretrain(self) -> None:
        level, batch = self.levels["pretrain"], self.batches["pretrain"].next()
        self.modules["mask"].requires_grad_(False)
        with self.autocast():
            with torch.no_grad():
                draws = level.draw(self.modules_of_levels, batch)
            loss, _ = level.loss(self.modules_of_levels, batch, draws)
        self.update("pretrain", loss)

    def finetune(self) -> None:
        images, labels = self.batches["finetune"].next()
        with self.autocast():
            with torch.no_grad():
                tokens = self.modules["pretrain"].encode(images)
            loss = F.cross_entropy(self.modules["finetune"](tokens).float(), labels)
        self.update("finetune", loss)

    def mask(self) -> None:
        """The loss of the mask level and its gradient, which nothing is done with."""
        images, labels = self.batches["mask"].next()
        mae, head = self.modules["pretrain"], self.modules["finetune"]
        with self.autocast():
            loss = F.cross_entropy(head(mae.encode(images)).float(), labels)
        loss.backward()
        for module in (mae, head):
            module.zero_grad(set_to_none=True)

    def update(self, name: str, loss: torch.Tensor) -> None:
        loss.backward()
        self.levels[name].optimizer.step()
        self.levels[name].optimizer.zero_grad(set_to_none=True)
        self.levels[name].scheduler.step()

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.mixed else nullcontext()


def iteration(side: str, recipe: GuidedMae) -> Iterate:
    return PlainSteps(recipe).iterate if side == "plain" else engine_iteration(recipe)


def recipe_for(side: str, overrides: list[str], other: list[str]) -> GuidedMae:
    paths, _, changed = side.partition(" ")
    return recipe_of(overrides + (other if changed else []), "both" if paths == "plain" else paths)


def peak_memory(side: str, overrides: list[str], other: list[str], iterations: int) -> float:
    """Growth of a fresh process's largest resident size over its iterations, in MiB."""
    given = ["--memory-of", side, "--other", " ".join(other), "--rounds", str(iterations)]
    return in_own_process(__file__, [*given, *overrides])


def measure_growth(side: str, overrides: list[str], other: list[str], iterations: int) -> float:
    """The same for this process, from before the engine is made."""
    recipe = recipe_for(side, overrides, other)
    return resident_growth(lambda: iteration(side, recipe), iterations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed iterations of each side (default 9)")
    parser.add_argument("--other", default="", help="settings of the sides to run beside the first ones")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    add_clock(parser)
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="as for multilevel train")
    options = parser.parse_args()
    other = options.other.split()
    if options.memory_of:
        print(measure_growth(options.memory_of, options.overrides, other, options.rounds))
        return
    sides = [*SIDES, *(["direct other", "both other"] if other else [])]
    memory = {side: peak_memory(side, options.overrides, other, 4) for side in sides}
    iterations = {side: iteration(side, recipe_for(side, options.overrides, other)) for side in sides}
    seconds = alternate(iterations, options.rounds, options.clock)
    print(conditions(options.rounds, options.clock, options.overrides))
    for side in sides:
        to_plain = ratio(seconds[side], seconds["plain"])
        print(
            f"{side:<12} {Spread.of(seconds[side]).median:6.2f} s, {to_plain.median:.2f}x the plain steps "
            f"(rounds {to_plain.least:.2f} to {to_plain.largest:.2f}); peak memory {memory[side]:6.0f} MiB, "
            f"{memory[side] / memory['plain']:.2f}x"
        )
    for side in ("direct", "both") if other else ():
        changed = ratio(seconds[f"{side} other"], seconds[side])
        spread = f"(rounds {changed.least:.2f} to {changed.largest:.2f})"
        print(f"{side}: {options.other} takes {changed.median:.2f}x {spread}")


if __name__ == "__main__":
    main()
