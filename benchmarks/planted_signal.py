"""Measures whether masks find the patches that show the class, in images of clutter in which 4 of 16 patches do
(data=planted).

Each arm is a mask policy or a hypergradient, trained for the same number of pretraining updates. For each, this prints
the ROC AUC with which the masks' mean scores separate those patches from the rest (1: always hidden first, 0: always
visible, 0.5: not separated), their additional probability of being hidden, and the encoder's test accuracy under each
protocol, fitted to a tenth of the labels, compared with random masks. Four arms are told which patches these are, to
show what masks can achieve. Rows already in the output are not run again.

    python benchmarks/planted_signal.py --seeds 5 --output docs/results/planted_signal.jsonl
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from kept_rows import completed
from study_tables import cell
from torch import Tensor

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.levels.masks import POLICIES, MaskPolicy, MaskView
from multilevel.problems import Engine
from multilevel.recipes.data.planted import signal_patches
from multilevel.study.scores import TRAINED

COMMON = (
    "data=planted data.limit=2500 data.mask_share=0.2 "
    "model.width=32 model.heads=2 model.depth=2 model.decoder_width=16 "
    "model.decoder_heads=2 model.decoder_depth=1 levels.pretrain.schedule=constant levels.finetune.learning_rate=2e-2 "
    "levels.mask.learning_rate=1e-2 mask.guidance=0.5 paths=direct levels.pretrain.steps=8 "
    "evaluation.references=false evaluation.labels=[0.1]"
)
UPDATES = 400  # of the pretraining level
BASELINE = "random"
UNROLLED = "levels.pretrain.solver=unrolled levels.pretrain.solver.steps=8"
ARMS = {
    BASELINE: "mask.policy=random",
    "told: all four hidden in half of the images": "mask.policy=told mask.options={hidden:4,share:0.5}",
    "told: all four hidden": "mask.policy=told mask.options={hidden:4,share:1}",
    "told: three of four hidden": "mask.policy=told mask.options={hidden:3,share:1}",
    "told: none hidden": "mask.policy=told mask.options={hidden:0,share:1}",
    "block": "mask.policy=block",
    "variance": "mask.policy=variance",
    "attention": "mask.policy=attention",
    "adversarial": "mask.policy=adversarial",
    "sampled, finite_difference": "solver=finite_difference",
    "sampled, finite_difference, both paths": "solver=finite_difference paths=both",
    "sampled, finite_difference, 2 updates a step": "solver=finite_difference levels.pretrain.steps=2",
    "sampled, finite_difference, radius 0.01 (published)": "solver=finite_difference solver.radius=0.01",
    "sampled, identity by forward products": "solver=identity solver.product=forward",
    "sampled, sama": "solver=sama",
    "sampled, conjugate_gradient on Gauss-Newton": (
        "levels.pretrain.solver=conjugate_gradient levels.pretrain.solver.curvature=gauss_newton "
        "levels.pretrain.solver.damping=0.1"
    ),
    "sampled, unrolled over 8 updates": UNROLLED,
    "topk, unrolled over 8 updates": f"mask.policy=topk {UNROLLED}",
    "stratified, masking network not trained": "mask.policy=stratified mask.guidance=1 levels.mask.learning_rate=1e-12",
    "stratified, finite_difference, no random masks": "mask.policy=stratified mask.guidance=1 solver=finite_difference",
    "stratified, unrolled over 8 updates": f"mask.policy=stratified {UNROLLED}",
    "stratified, unrolled, no random masks": f"mask.policy=stratified mask.guidance=1 {UNROLLED}",
    "weighted, unrolled": f"mask.policy=weighted mask.guidance=1 {UNROLLED}",
    "weighted, finite_difference": "mask.policy=weighted mask.guidance=1 solver=finite_difference",
    "stratified, unrolled, plain losses": f"mask.policy=stratified mask.guidance=1 mask.gradient=visibility {UNROLLED}",
    "sampled, unrolled, no random masks": f"mask.guidance=1 {UNROLLED}",
}


class Told(MaskPolicy):
    """Hides a number of the patches that show the class in some images, and any patches in the others.

    Args:
        hidden: how many of these patches, drawn for each image; the rest of them is seen.
        share: share of the images.
    """

    learns_from = None

    def __init__(self, hidden: int, share: float) -> None:
        self.hidden = hidden
        self.share = share

    def scores(self, view: MaskView) -> Tensor:
        scores, (known,) = torch.rand(len(view.images), view.patches), signal_patches(view.side).nonzero(as_tuple=True)
        places = torch.rand(len(scores), len(known)).argsort(1)
        told = torch.rand(len(scores), 1) < self.share
        scores[:, known] += told * torch.where(places < self.hidden, 1.0, -1.0)
        return scores


def measure(arm: str, seed: int) -> dict[str, Any]:
    """Train one arm and say what its masks have found."""
    given: dict[str, str] = {}
    for override in [*COMMON.split(), *ARMS[arm].split(), f"seed={seed}"]:
        name, _, value = override.partition("=")
        given[name] = value  # the last one counts
    steps = UPDATES // int(given["levels.pretrain.steps"])
    given["steps"] = str(steps)  # the schedules depend on it
    recipe = build_recipe(compose_config([f"{name}={value}" for name, value in given.items()]))
    engine = Engine(recipe.graph, seed=seed)
    start = time.process_time()
    before = recipe.findings()
    engine.run(steps)
    spent = round(time.process_time() - start, 1)
    scores = {one.protocol: one.metrics["accuracy"] for one in recipe.evaluate() or () if one.encoder == TRAINED}
    found = {"before": before, **recipe.findings(), "accuracy": scores}
    return {"arm": arm, "seed": seed, **found, "cpu_seconds": spent}


def table(rows: list[dict[str, Any]]) -> str:
    def by_seed(arm: str, protocol: str) -> dict[int, float]:
        return {row["seed"]: row["accuracy"][protocol] for row in rows if row["arm"] == arm}

    protocols = list(rows[0]["accuracy"])
    titles = ["masks", "seeds", "ROC AUC: median (range)", "hidden more probably by", *protocols, "CPU seconds"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if own:
            auc, gap = ([row[key] for row in own] for key in ("signal_auc", "signal_gap"))
            cells = [
                arm,
                str(len(own)),
                f"{statistics.median(auc):.2f} ({min(auc):.2f} to {max(auc):.2f})",
                f"{statistics.median(gap):+.2f} ({min(gap):+.2f} to {max(gap):+.2f})",
                *(cell(by_seed(arm, one), by_seed(BASELINE, one), arm == BASELINE) for one in protocols),
                f"{statistics.median(row['cpu_seconds'] for row in own):.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--output", type=Path, default=Path("planted_signal.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    POLICIES["told"] = Told
    tasks = [(arm, seed) for seed in range(asked.seeds) for arm in asked.arms]
    rows = completed(asked.output, tasks, lambda row: (row["arm"], row["seed"]), lambda task: measure(*task))
    print(table(rows))


if __name__ == "__main__":
    main()
