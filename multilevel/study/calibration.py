"""Measures the seconds per step of all arms in alternation: ``python -m multilevel.study.calibration STUDY``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.recipes.base import Recipe
from multilevel.runs.cpu_threads import cpu_threads
from multilevel.runs.training import new_engine
from multilevel.study.plan import Study

WARMUP, ROUNDS, STEPS = 2, 5, 3  # steps before the first round; rounds; steps of each arm in a round


def main(arguments: Sequence[str]) -> int:
    """Measure, and write step counts that take equal time into the study's file."""
    folder = Path(arguments[0])
    study = Study.read(folder)
    torch.set_num_threads(study.threads)
    seed = study.seeds[0]
    recipes = {arm.name: build_recipe(compose_config(study.overrides(arm, seed))) for arm in study.arms}
    study.timed(seconds_per_step(recipes)).write(folder)
    return 0


def seconds_per_step(recipes: dict[str, Recipe]) -> dict[str, float]:
    """Median over rounds in which the recipes take turns, so that a slow spell of the machine affects all of them."""
    engines = {name: new_engine(recipe) for name, recipe in recipes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}

    def run(name: str, steps: int) -> None:
        with cpu_threads(recipes[name]):  # as in training
            engines[name].run(steps)

    for name in engines:
        run(name, WARMUP)
    for _ in tqdm(range(ROUNDS), desc="measuring seconds per step", disable=None):
        for name in engines:
            started = time.perf_counter()
            run(name, STEPS)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - started) / STEPS)
    return {name: median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
