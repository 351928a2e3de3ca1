"""Measures what a hypergradient of the guided autoencoder is worth, in two tables for one data set.

Table 1, reliability: with the masking network held, the cosine of a single hypergradient with the mean of the others',
and of the hypergradients of two halves of a held-out batch. Table 2, horizon: the masking network is moved along the
mean of half of these hypergradients and against it, by 2% of its norm; after N further outer steps of the levels below,
the slope of the held-out loss. Each row of a table is a channel (weights of the losses, or the choice of patches) and a
way to pass through the levels below. Rows already in the output are not measured again.

    python benchmarks/hypergradient_worth.py --data planted --output docs/results/worth_planted.jsonl
    python benchmarks/hypergradient_worth.py --data digits --output docs/results/worth_digits.jsonl
    python benchmarks/hypergradient_worth.py --data cifar10 --path DIR --output docs/results/worth_cifar10.jsonl
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from kept_rows import append_row, read_rows
from tqdm import tqdm

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.problems.reliability import measure_reliability
from multilevel.problems.replay import RANDOM
from multilevel.solvers import ConjugateGradient, Identity, Solver, Unrolled

OUTER_STEPS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Point:
    """A run to measure at.

    Attributes:
        settings: of the recipe.
        step: outer steps before measuring.
        seeds: seeds of the run, each a point of its own.
        replays: of each direction.
    """

    settings: str
    step: int
    seeds: int
    replays: int


POINTS = {
    "planted": Point("data=planted data.limit=2500", 30, 1, 3),
    "digits": Point("data=digits", 100, 1, 3),
    "cifar10": Point("experiment=cifar10_small", 100, 1, 2),
}
CHANNELS = ("weights", "choice")


def ways() -> dict[str, tuple[str, dict[str, Solver]]]:
    """The ways through the levels below: the paths, and each level's solver."""
    exact = ConjugateGradient(iterations=200, tolerance=1e-6, damping=1e-3)
    both = ("pretrain", "finetune")
    return {
        "unrolled, one outer step": ("both", dict.fromkeys(both, Unrolled(outer_steps=1))),
        "unrolled, eight outer steps": ("both", dict.fromkeys(both, Unrolled(outer_steps=8))),
        "scale 1 (the default)": ("both", dict.fromkeys(both, Identity())),
        "scale of one outer step": ("both", dict.fromkeys(both, Identity(scale=None))),
        "exact head": ("both", {"pretrain": Identity(), "finetune": exact}),
        "direct path": ("direct", {"pretrain": Identity()}),
        "direct path, unrolled": ("direct", {"pretrain": Unrolled(outer_steps=1)}),
    }


def engine_of(point: Point, seed: int, more: str) -> Engine:
    recipe = build_recipe(compose_config([*point.settings.split(), f"seed={seed}", "threads=1", *more.split()]))
    return Engine(recipe.graph, seed=seed, check=False)


def rows_of(point: Point, seed: int, path: str, wanted: set[tuple[str, str, str]], steps: int) -> Any:
    """Yield a row for each of ``wanted``: (channel, way, kind)."""
    base = engine_of(point, seed, path)
    base.run(point.step)
    state = copy.deepcopy(base.state_dict())
    for channel in CHANNELS:
        for way, (paths, solvers) in ways().items():
            kinds = [kind for kind in ("reliability", "replay") if (channel, way, kind) in wanted]
            if not kinds:
                continue
            engine = engine_of(point, seed, f"{path} paths={paths} mask.gradient={channel}")
            engine.load_state_dict(copy.deepcopy(state))  # the levels are the same; only derivatives differ
            for kind in kinds:
                start = time.perf_counter()
                if kind == "reliability":
                    result: Any = measure_reliability(engine, steps, solvers).figures()
                else:
                    settings = {"steps": steps, "seeds": point.replays, "control": False, "solvers": {way: solvers}}
                    result = engine.replay(OUTER_STEPS, **settings).as_dict()
                seconds = round(time.perf_counter() - start, 1)
                place = {"channel": channel, "way": way, "kind": kind, "seed": seed}
                yield {**place, "step": point.step, "seconds": seconds, "result": result}


def first_table(rows: list[dict[str, Any]]) -> str:
    """Reliability: a row for each channel and way, with the values of all seeds."""
    titles = ("channel", "through the levels below", "noise", "halves", "held-out examples for a cosine of 0.5")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    measured = [row for row in rows if row["kind"] == "reliability"]
    for channel, way in dict.fromkeys((row["channel"], row["way"]) for row in measured):
        own = [row["result"] for row in measured if (row["channel"], row["way"]) == (channel, way)]
        cells = [" ".join(f"{figures[name]['value']:+.2f}" for figures in own) for name in ("noise", "halves")]
        lines.append(f"| {channel} | {way} | {' | '.join(cells)} | {' '.join(map(_needed, own))} |")
    return "\n".join(lines)


def _needed(figures: dict[str, Any]) -> str:
    return "?" if figures["limit"] is None else str(figures["needed"]["0.5"] or "none")


def second_table(rows: list[dict[str, Any]], draws: str, seed: int) -> str:
    """Slopes in 1e-3 along both directions at one seed, bold if both are right and resolved, and with several seeds how
    many directions of all of them are right."""
    lines = [f"| channel | through the levels below | {' | '.join(f'N={count}' for count in OUTER_STEPS)} |"]
    lines.append("|---" * (2 + len(OUTER_STEPS)) + "|")
    measured = [row for row in rows if row["kind"] == "replay"]
    for channel, way in dict.fromkeys((row["channel"], row["way"]) for row in measured):
        own = [row for row in measured if (row["channel"], row["way"]) == (channel, way)]
        cells = [_cell(own, draws, count, seed) for count in OUTER_STEPS]
        lines.append(f"| {channel} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[dict[str, Any]], draws: str, count: int, seed: int) -> str:
    right, total, shown = 0, 0, ""
    for row in rows:
        for slope in row["result"]["rows"]:
            if (slope["draws"], slope["outer_steps"]) != (draws, count) or slope["solver"] == RANDOM:
                continue
            halves = [half["measured"] for half in slope["halves"]]
            right, total = right + sum(fmean(half) > 0 for half in halves), total + len(halves)
            if row["seed"] == seed:
                shown = "; ".join(f"{1e3 * fmean(half):+.2g} ± {1e3 * stdev(half):.2g}" for half in halves)
                shown = f"**{shown}**" if slope["resolved"] and all(fmean(half) > 0 for half in halves) else shown
    return shown if len(rows) == 1 else f"{shown}; {right} of {total} right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=POINTS, required=True)
    parser.add_argument("--path", help="folder of the images, for cifar10")
    parser.add_argument("--steps", type=int, default=48, help="outer steps whose hypergradients are averaged")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--print", action="store_true", help="only print the rows of the output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    point = POINTS[arguments.data]
    rows = read_rows(arguments.output)
    done = {(row["seed"], row["channel"], row["way"], row["kind"]) for row in rows}
    places = [(channel, way, kind) for channel in CHANNELS for way in ways() for kind in ("reliability", "replay")]
    bar = tqdm(total=point.seeds * len(places) - len(done), unit="row", disable=arguments.print)
    for seed in range(0 if arguments.print else point.seeds):
        wanted = {place for place in places if (seed, *place) not in done}
        path = f"data.path={arguments.path}" if arguments.path else ""
        for row in rows_of(point, seed, path, wanted, arguments.steps) if wanted else ():
            rows.append(row)
            append_row(arguments.output, row)
            bar.update()
    bar.close()
    print(first_table(rows))
    for draws in ("held", "renewed"):
        print(f"\ndraws {draws}; seed 0: first half; second half\n{second_table(rows, draws, 0)}")


if __name__ == "__main__":
    main()
