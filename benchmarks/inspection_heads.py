"""Compares the classifiers that a plant could deploy on folders of real parts, by five folds that keep near copies
together, and five seeds of training.

Each row is a fold and a seed: ``multilevel train`` with its defaults on the other four folds, whose labelled images
then choose heads and thresholds, again out of fold; the images of the fold are scored once. Arms: the export's default
head, its three candidates, and the references. Areas are those of defect against good; recall is that at 10% false
alarms, once on the curve of the scored images and once at the threshold that training images chose. Supervised from
scratch has no such threshold, which would take three more trainings. Rows already in the output are not measured again.

    python benchmarks/inspection_heads.py --path DIR --output docs/results/inspection_tiles.jsonl
    python benchmarks/inspection_heads.py --output docs/results/inspection_tiles.jsonl --print
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from kept_rows import completed, read_rows
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from multilevel.__main__ import main as multilevel
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems.checkpoint import newest_intact, take_weights
from multilevel.recipes.evaluation import grouped_folds, out_of_fold
from multilevel.recipes.evaluation.evaluate import extract_features
from multilevel.recipes.evaluation.fitting import scored_outputs
from multilevel.recipes.evaluation.protocols import Trial
from multilevel.recipes.evaluation.protocols.base import class_probabilities
from multilevel.recipes.evaluation.protocols.linear_probe import fit_linear_probe
from multilevel.recipes.evaluation.supervised import NAME as SUPERVISED
from multilevel.recipes.export.heads import HEADS, Heads, choose_head
from multilevel.recipes.export.operating_point import choose_threshold, defect_probability, good_class
from multilevel.runs.folder import RunFolder

FOLDS, SEEDS, FALSE_ALARMS = 5, 5, 0.1
T_QUANTILE = 2.776  # of Student's distribution with four degrees of freedom, at 97.5%
DEFAULT, PROBED = "default export", ("untrained encoder", "raw pixels")
ARMS = (DEFAULT, *HEADS, SUPERVISED, *PROBED[::-1])


@dataclass(frozen=True)
class Predictions:
    """Probabilities of the scored images, float64 [N, classes], and of held-out training images with their labels."""

    scored: np.ndarray
    held: tuple[np.ndarray, np.ndarray] | None = None


def folds_of(path: Path) -> list[np.ndarray]:
    """The files of each fold, by the division of connected near copies into five folds with seed 0."""
    config = compose_config(["data=folder", f"data.path={path}"])
    split = build_recipe(config).data.train.images.source
    names = np.array(split.names)
    groups = split.groups.numpy()
    return [names[held] for _, held in grouped_folds(split.labels.numpy(), groups, FOLDS, seed=0)]


def measure(path: Path, folds: Sequence[np.ndarray], steps: Sequence[str], task: tuple[int, int]) -> dict[str, Any]:
    fold, seed = task
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, names in enumerate(folds):
            for name in names:
                target = root / "images" / ("test" if number == fold else "train") / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path / name, target)
        settings = [
            "data=folder",
            f"data.path={root / 'images'}",
            f"seed={seed}",
            "threads=1",
            "evaluate=false",
            *steps,
        ]
        if multilevel(["train", *settings, f"output={root / 'run'}"]):
            raise SystemExit("training failed")
        trained = time.perf_counter() - start
        arms, head = predictions(root / "run")
    scores = {name: scored(arm, head["labels"], head["good"]) for name, arm in arms.items()}
    seconds = {"train": round(trained, 1), "all": round(time.perf_counter() - start, 1)}
    return {"fold": fold, "seed": seed, "head": head["head"], "arms": scores, "seconds": seconds}


def predictions(run: Path) -> tuple[dict[str, Predictions], dict[str, Any]]:
    """The predictions of every arm, and the head that the default export takes."""
    folder = RunFolder(run)
    config = folder.config_with_division()
    recipe: Any = build_recipe(config)
    take_weights(recipe.graph, newest_intact(folder.checkpoint, [])[0])
    data = recipe.data
    arms, scores = {}, {}
    for name in HEADS:
        choice = choose_head(recipe, name)
        assert choice is not None
        model, scores[name] = choice.model, choice.scores[name]
        features = encoded(recipe, model.autoencoder.features, data.test)
        with torch.no_grad():
            logits = model.classifier(torch.from_numpy(features)).double()
        arms[name] = Predictions(logits.softmax(1).numpy(), (choice.probabilities, choice.labels))
    best = max(scores, key=lambda name: scores[name])
    arms[DEFAULT] = arms[best]
    heads = Heads(recipe, recipe.trained_model())
    for candidate in recipe.candidates("supervised"):
        if candidate.name in PROBED:
            arms[candidate.name] = probed(recipe, heads, candidate.features)
        elif candidate.own is not None:
            protocol: Any = candidate.own[1]
            trial = Trial(candidate, recipe.setup(), data.train, data.test, lambda: (), heads.metric, 1, 256, 0)
            encoder, head = protocol.train(trial)
            outputs = scored_outputs(lambda images, e=encoder, h=head: h(e.encode(images)), trial)
            arms[candidate.name] = Predictions(outputs.double().softmax(1).cpu().numpy())
    good = data.class_names.index(good_class(data.class_names))
    return arms, {"head": best, "good": good, "labels": data.test.labels.numpy()}


def encoded(recipe: Any, features: Callable, part: Any) -> np.ndarray:
    return extract_features(features, recipe.data, part, torch.arange(len(part)), 256, torch.device("cpu"), "encoder")


def probed(recipe: Any, heads: Heads, features: Callable) -> Predictions:
    """A linear probe, fitted to all labelled training images and out of fold."""
    train, test = encoded(recipe, features, heads.images), encoded(recipe, features, recipe.data.test)
    labels, groups, classes = heads.labels, heads.images.groups.numpy(), len(recipe.data.class_names)

    def predicted(fit: np.ndarray, images: np.ndarray) -> np.ndarray:
        probe = fit_linear_probe(train[fit], labels[fit], 0, heads.metric, groups[fit])
        return class_probabilities(probe, images, classes)

    held, probabilities = out_of_fold(lambda fit, rows: predicted(fit, train[rows]), heads.folds)
    return Predictions(predicted(heads.training, test), (probabilities, labels[held]))


def scored(arm: Predictions, labels: np.ndarray, good: int) -> dict[str, float]:
    """The measures of an arm on the scored images."""
    defect, scores = labels != good, defect_probability(arm.scored, good)
    cut = choose_threshold(scores, defect, "false_alarms", FALSE_ALARMS)
    measures = {
        "area": float(roc_auc_score(defect, scores)),
        "recall": float((scores[defect] >= cut).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(labels, arm.scored.argmax(1))),
    }
    if arm.held is not None:
        probabilities, held = arm.held
        chosen = choose_threshold(defect_probability(probabilities, good), held != good, "false_alarms", FALSE_ALARMS)
        measures["chosen_recall"] = float((scores[defect] >= chosen).mean())
        measures["chosen_false_alarms"] = float((scores[~defect] >= chosen).mean())
    return measures


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians and ranges over all rows, and the intervals of the default's distance from the best head."""
    lines = ["| classifier | area under the ROC curve | recall at 10% false alarms | at the chosen threshold: recall | "
             "false alarms | balanced accuracy |", "|---|---|---|---|---|---|"]  # fmt: skip
    kinds = ("area", "recall", "chosen_recall", "chosen_false_alarms", "balanced_accuracy")
    for name in ARMS:
        cells = [spread([row["arms"][name][kind] for row in rows if kind in row["arms"][name]]) for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for kind in kinds[:2]:
        best = max(HEADS, key=lambda name: np.mean([row["arms"][name][kind] for row in rows]))
        differences = np.array([row["arms"][DEFAULT][kind] - row["arms"][best][kind] for row in rows])
        by_seed = [differences[[row["seed"] == seed for row in rows]].mean() for seed in {row["seed"] for row in rows}]
        half = T_QUANTILE * np.std(by_seed, ddof=1) / len(by_seed) ** 0.5 if len(by_seed) == SEEDS else np.nan
        low, middle, high = (100 * (np.mean(by_seed) + shift) for shift in (-half, 0, half))
        lines.append(
            f"{kind}: default export minus {best}, the best of its candidates: {middle:+.1f} points "
            f"(95% interval over the means of {len(by_seed)} seeds: {low:+.1f} to {high:+.1f})"
        )
    heads = {name: sum(row["head"] == name for row in rows) for name in HEADS}
    lines.append(f"{len(rows)} rows; head of the default export: {json.dumps(heads)}")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, middle, high = (100 * value for value in (min(values), median(values), max(values)))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, help="a folder with a subfolder of images for each class")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", nargs="*", default=[], help="more settings of multilevel train")
    parser.add_argument("--print", action="store_true", help="only print the table of the rows in the output")
    arguments = parser.parse_args()
    if not arguments.print:
        torch.set_num_threads(1)
        folds = folds_of(arguments.path)
        tasks = [(fold, seed) for seed in range(SEEDS) for fold in range(FOLDS)]
        completed(
            arguments.output,
            tasks,
            lambda row: (row["fold"], row["seed"]),
            lambda task: measure(arguments.path, folds, arguments.settings, task),
        )
    print(table(read_rows(arguments.output)))


if __name__ == "__main__":
    main()
