"""Which hypergradients make better encoders? Trains the guided autoencoder with one setting at a time changed from the
best known, on planted signals and on CIFAR-10, for equal pretraining updates.

Each row is a run: the accuracy of probes on validation images, which no level has seen, fitted to a tenth of the
training labels, and the FLOPs of a step. For seed 0, in the middle of training, it also has the reliability of the
hypergradient and its slopes after further outer steps. Rows already in the output are not run again.

    python benchmarks/encoder_study.py --data planted --output docs/results/encoders_planted.jsonl
    python benchmarks/encoder_study.py --data cifar10 --path DIR --output docs/results/encoders_cifar10.jsonl
    python benchmarks/encoder_study.py --data planted --plan         # the rows, their FLOPs and expected hours
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kept_rows import completed
from study_tables import cell
from torch.utils.flop_counter import FlopCounterMode

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.problems.reliability import measure_reliability
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.study.scores import TRAINED


@dataclass(frozen=True)
class Data:
    """A data set to train on.

    Attributes:
        settings: of the recipe.
        steps: outer steps, of 2 pretraining updates each.
        replay: settings of the replay.
    """

    settings: str
    steps: int
    replay: dict[str, Any]


DATA = {
    "planted": Data(
        "data=planted data.limit=2500 model.width=32 model.heads=2 model.depth=2 model.decoder_width=16 "
        "model.decoder_heads=2 model.decoder_depth=1 levels.pretrain.schedule=constant "
        "levels.finetune.learning_rate=2e-2 levels.mask.learning_rate=1e-2 data.validation_share=0.2",
        200,
        {"steps": 24, "seeds": 3},
    ),
    "cifar10": Data("experiment=cifar10_small data.validation_share=0.1", 200, {"steps": 12, "seeds": 2}),
}
COMMON = "threads=1 data.mask_share=0.2 evaluation.split=validation evaluation.references=false evaluation.labels=[0.1]"
BASELINE = "random masks"
DEFAULT = "default so far: sampled, both paths, identity"
BEST = "mask.policy=stratified paths=direct solver=unrolled"  # on planted signals, see docs/results.md
IDENTITY = f"{BEST} solver=identity"
ONE_STEP = f"{IDENTITY} paths=both solver.scale=null"  # costs as much as the default so far
EXACT = "".join(
    f" levels.finetune.solver{option}" for option in ("=conjugate_gradient", ".iterations=50", ".damping=0.01")
)
ARMS = {
    BASELINE: "mask.policy=random",
    DEFAULT: "mask.policy=sampled paths=both solver=identity",
    "best so far: stratified, direct, unrolled": BEST,
    "path: both, unrolled": f"{BEST} paths=both",
    "path: both, unrolled through 8 outer steps": f"{BEST} paths=both solver.outer_steps=8",
    "path: direct, identity": IDENTITY,
    "scale: both, one outer step": ONE_STEP,
    "scale: both, 8 outer steps": f"{ONE_STEP} solver.outer_steps=8",
    "scale: both, 32 outer steps": f"{ONE_STEP} solver.outer_steps=32",
    "scale: both, 1": f"{IDENTITY} paths=both",
    "scale: both, 1, exact head": f"{IDENTITY} paths=both{EXACT}",
    "policy: sampled, unrolled": f"{BEST} mask.policy=sampled",
    "policy: weighted, unrolled": f"{BEST} mask.policy=weighted",
    "channel: sampled, choice, unrolled": f"{BEST} mask.policy=sampled mask.gradient=choice",
    "channel: sampled, weights and choice, unrolled": f"{BEST} mask.policy=sampled mask.gradient=weights+choice",
    "one outer step: held-out batch 128": f"{ONE_STEP} levels.mask.accumulate=2",
    "one outer step: held-out batch 512": f"{ONE_STEP} levels.mask.accumulate=8",
    "one outer step: sampled": f"{ONE_STEP} mask.policy=sampled",
    "one outer step: sampled, choice": f"{ONE_STEP} mask.policy=sampled mask.gradient=choice",
    "one outer step: weighted": f"{ONE_STEP} mask.policy=weighted",
    "one outer step: topk": f"{ONE_STEP} mask.policy=topk",
}
#: Arms without rows on a data set: docs/results.md says why.
LEFT_OUT = {
    "cifar10": ("path: both, unrolled through 8 outer steps", "path: direct, identity", "one outer step: topk"),
}
REPLAYED = (1, 8, 32)


def recipe_of(data: Data, arm: str, seed: int, path: str) -> EncoderRecipe:
    chosen: dict[str, str] = {}
    for override in f"{data.settings} {COMMON} steps={data.steps} seed={seed} {path} {ARMS[arm]}".split():
        setting, _, value = override.partition("=")
        chosen[setting] = value  # the last one counts
    recipe = build_recipe(compose_config([f"{setting}={value}" for setting, value in chosen.items()]))
    assert isinstance(recipe, EncoderRecipe)
    return recipe


def flops_of(engine: Engine) -> int:
    """The floating-point operations of the engine's next step."""
    with FlopCounterMode(display=False) as counter:
        engine.run(1)
    return int(counter.get_total_flops())


def measure(data: Data, arm: str, seed: int, path: str) -> dict[str, Any]:
    """Train, and evaluate on validation images."""
    recipe = recipe_of(data, arm, seed, path)
    engine = Engine(recipe.graph, seed=seed)
    start = time.process_time()
    engine.run(data.steps - 1)
    costs = {"flops": flops_of(engine), "cpu_seconds": round(time.process_time() - start, 1)}
    scores = [score for score in recipe.evaluate() or () if score.encoder == TRAINED]
    accuracy = {score.protocol: score.metrics["accuracy"] for score in scores}
    return {"kind": "run", "arm": arm, "seed": seed, "accuracy": accuracy, **costs, **recipe.findings()}


def examine(data: Data, arm: str, path: str) -> dict[str, Any]:
    """The reliability and the slopes of the hypergradient in the middle of training, at seed 0."""
    recipe = recipe_of(data, arm, 0, path)
    engine = Engine(recipe.graph, seed=0)
    engine.run(data.steps // 2)
    start = time.process_time()
    reliability = measure_reliability(engine, 2 * data.replay["steps"]).figures()
    replay = engine.replay(REPLAYED, draws=["renewed"], control=False, **data.replay).as_dict()
    seconds = round(time.process_time() - start, 1)
    return {
        "kind": "examination",
        "arm": arm,
        "seed": 0,
        "cpu_seconds": seconds,
        "reliability": reliability,
        "replay": replay,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracies on validation images, the FLOPs of a step in those of the default so far, and the examinations."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "run":
            runs.setdefault(row["arm"], {})[row["seed"]] = row
    seen = {row["arm"]: row for row in rows if row["kind"] == "examination"}
    protocols = list(rows[0]["accuracy"])
    unit = _median(runs.get(DEFAULT, {}), "flops")
    titles = ["arm", "seeds", *protocols, "FLOPs of a step", "CPU seconds", "noise", *(f"N={n}" for n in REPLAYED)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for arm in [arm for arm in ARMS if arm in runs]:
        accuracy = [[_accuracy(runs.get(name, {}), protocol) for name in (arm, BASELINE)] for protocol in protocols]
        cells = [cell(*pair, arm == BASELINE) for pair in accuracy]
        share = f"{_median(runs[arm], 'flops') / unit:.2f}" if unit else "-"
        costs = [share, f"{_median(runs[arm], 'cpu_seconds'):.0f}"]
        lines.append(f"| {' | '.join([arm, str(len(runs[arm])), *cells, *costs, *_examined(seen.get(arm))])} |")
    return "\n".join(lines)


def _accuracy(runs: dict[int, dict[str, Any]], protocol: str) -> dict[int, float]:
    return {seed: row["accuracy"][protocol] for seed, row in runs.items()}


def _median(runs: dict[int, dict[str, Any]], key: str) -> float:
    return statistics.median([row[key] for row in runs.values()] or [0.0])


def _examined(row: dict[str, Any] | None) -> list[str]:
    """The noise cosine with its interval, and both slopes in 1e-3 at each horizon."""
    if row is None:
        return ["-"] * (1 + len(REPLAYED))
    noise = row["reliability"]["noise"]
    slopes = {
        slope["outer_steps"]: "; ".join(f"{1e3 * statistics.fmean(half['measured']):+.3g}" for half in slope["halves"])
        for slope in row["replay"]["rows"]
    }
    cells = [slopes.get(count, "-") for count in REPLAYED]
    return [f"{noise['value']:+.2f} ({noise['low']:+.2f} to {noise['high']:+.2f})", *cells]


def plan(data: Data, seeds: int, path: str) -> None:
    """Print every arm with the FLOPs and CPU seconds of a step, and the expected hours of all of its runs."""
    total = 0.0
    for arm in ARMS:
        engine = Engine(recipe_of(data, arm, 0, path).graph, seed=0)
        engine.run(2)
        start = time.process_time()
        engine.run(3)
        seconds = (time.process_time() - start) / 3
        hours = seconds * data.steps * seeds / 3600
        total += hours
        print(f"| {arm} | {flops_of(engine) / 1e9:.2f} | {seconds:.2f} | {hours:.2f} |", flush=True)
    print(f"one core, {total:.1f} hours; two cores, {total / 2:.1f} hours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--path", help="folder of the images, for cifar10")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--arms", nargs="*", help="default: all, without LEFT_OUT for cifar10")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plan", action="store_true", help="only print the arms and their expected hours")
    parser.add_argument("--print", action="store_true", help="only print the rows of the output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arms = arguments.arms or [arm for arm in ARMS if arm not in LEFT_OUT.get(arguments.data, ())]
    data, path = DATA[arguments.data], f"data.path={arguments.path}" if arguments.path else ""
    if arguments.plan:
        plan(data, len(arguments.seeds), path)
        return
    tasks = [("run", arm, seed) for seed in arguments.seeds for arm in arms]
    tasks += [("examination", arm, 0) for arm in arms if arm != BASELINE and 0 in arguments.seeds]
    rows = completed(
        arguments.output,
        [] if arguments.print else tasks,
        lambda row: (row["kind"], row["arm"], row["seed"]),
        lambda task: measure(data, *task[1:], path) if task[0] == "run" else examine(data, task[1], path),
    )
    print(table(rows))


if __name__ == "__main__":
    main()
