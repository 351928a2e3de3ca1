"""Seconds a step of every arm, measured side by side: ``python -m multilevel.study.calibration STUDY``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from multilevel.configuration import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.study.plan import Study
from multilevel.train import new_engine

WARMUP, ROUNDS, STEPS = 2, 5, 3  # steps before the first round; rounds; steps of each arm in a round


def main(arguments: Sequence[str]) -> int:
    """Measure, and write the numbers of steps that take equal time into the study's file."""
    folder = Path(arguments[0])
    study = Study.read(folder)
    torch.set_num_threads(study.threads)
    seed = study.seeds[0]
    engines = {arm.name: new_engine(build_recipe(compose_config(study.overrides(arm, seed)))) for arm in study.arms}
    study.timed(seconds_per_step(engines)).write(folder)
    return 0


def seconds_per_step(engines: dict[str, Engine]) -> dict[str, float]:
    """Median over rounds, in which all engines take turns, so that a slow spell of the machine hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.run(WARMUP)
    for _ in tqdm(range(ROUNDS), desc="measuring seconds a step", disable=None):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.run(STEPS)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            found[name].append((time.perf_counter() - started) / STEPS)
    return {name: median(values) for name, values in found.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
