"""Claims about what training comes to: numbers of a training run, each on one side of a threshold.

A test asserts them with seed 0; ``python benchmarks/training_claims.py`` measures the same ones with five seeds, and
again from starting weights moved by a millionth, and says which hold in all ten runs with room to spare.

    @claims(separation_auc=above(0.9))
    def cleaning(seed):
        return {"separation_auc": trained("recipe=hyper_cleaning", seed=seed).findings()["separation_auc"]}

    def test_it_finds_the_wrong_labels():
        cleaning.check()
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.recipes.base import Recipe
from multilevel.runs.training import new_engine


@dataclass(frozen=True)
class Bound:
    """What a number is claimed to lie above or below."""

    threshold: float
    sign: int  # 1: above, -1: below

    def holds(self, value: float) -> bool:
        return self.sign * (value - self.threshold) > 0

    def room(self, values: Sequence[float]) -> float:
        """How far the worst value is from the threshold, in standard deviations of the values."""
        margin = min(self.sign * (value - self.threshold) for value in values)
        spread = statistics.stdev(values)
        return margin / spread if spread else math.copysign(math.inf, margin)

    def __str__(self) -> str:
        return f"{'above' if self.sign > 0 else 'below'} {self.threshold:g}"


def above(threshold: float) -> Bound:
    return Bound(threshold, 1)


def below(threshold: float) -> Bound:
    return Bound(threshold, -1)


@dataclass(frozen=True)
class Claims:
    """Bounds of the numbers, by name, that ``measure(seed)`` returns of a training run."""

    measure: Callable[[int], dict[str, float]]
    bounds: dict[str, Bound]

    def values(self, seed: int, moved: float = 0.0) -> dict[str, float]:
        """Train with a seed, from starting weights moved by a share of their root mean square."""
        with moved_starts(moved):
            values = self.measure(seed)
        assert values.keys() == self.bounds.keys()
        return values

    def check(self, seeds: Iterable[int] = (0,)) -> None:
        """Train with each seed, and assert every claim."""
        for seed in seeds:
            self.hold(self.values(seed))

    def hold(self, values: dict[str, float]) -> None:
        """Assert every claim of what a run has come to."""
        for name, bound in self.bounds.items():
            assert bound.holds(values[name]), f"{name} of {values[name]:.4g}, claimed {bound}"


def claims(**bounds: Bound) -> Callable[[Callable[[int], dict[str, float]]], Claims]:
    """Decorates a function ``measure(seed)``: the numbers that it returns are claimed to be within these bounds."""
    return lambda measure: Claims(measure, bounds)


@contextmanager
def moved_starts(moved: float) -> Iterator[None]:
    """Within, every engine starts from moved weights, and so does what ``start`` is called with."""
    construct = Engine.__init__

    def construct_and_move(engine: Engine, *arguments: Any, **keywords: Any) -> None:
        construct(engine, *arguments, **keywords)
        for problem in engine.graph.problems.values():
            start(problem.module)

    with patch.object(Engine, "__init__", construct_and_move), patch.object(start, "moved", moved):
        yield


@torch.no_grad()
def start(module: nn.Module) -> nn.Module:
    """A module whose weights have been moved, where they are to be, in a random direction; those that are 0 stay so."""
    generator = torch.Generator().manual_seed(0)
    for weights in module.parameters() if start.moved else ():
        direction = torch.randn(weights.shape, generator=generator).to(weights)
        weights += start.moved * weights.square().mean().sqrt() * direction
    return module


start.moved = 0.0


def untrained(*settings: str, seed: int) -> Recipe:
    """A recipe with its initial weights."""
    return build_recipe(compose_config([*settings, f"seed={seed}"]))


def trained(*settings: str, seed: int) -> Recipe:
    """A recipe, trained for as many steps as it says."""
    recipe = untrained(*settings, seed=seed)
    new_engine(recipe).run(recipe.settings.steps)
    return recipe
