"""The summary of a finished run: summary.json."""

from __future__ import annotations

import platform
import re
import resource
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from multilevel.recipes.base import Recipe
from multilevel.recipes.encoder import EncoderRecipe, images_per_step
from multilevel.recipes.evaluation import Score, scored_images
from multilevel.runs.collapse import find_collapse
from multilevel.solvers import SOLVERS, MultilevelError, Solver

VERSIONS = ("multilevel", "torch", "transformers", "datasets", "hydra-core", "scikit-learn", "numpy")
SHARE = 0.1  # share of a level's updates at either end that its first and last losses average over


@dataclass
class Outcome:
    """The results of a run in addition to its event log.

    Args:
        seconds: spent on training, over all sessions of the run.
        memory: peak of the training, in MiB.
        waiting: share of this session's training time spent waiting for data.
        findings: findings of the recipe.
        scores: scores of the evaluation, if any.
        problem: why the evaluation failed.
        noise: the last diagnosis's cosine of the top level's hypergradient with the mean of others, see ``Diagnosis``.
    """

    seconds: float
    memory: float
    waiting: float | None = None
    findings: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[Score] | None = None
    problem: MultilevelError | None = None
    noise: Mapping[str, Any] | None = None


def summarize_run(
    recipe: Recipe, records: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]], outcome: Outcome
) -> dict[str, Any]:
    """Summarize a run in one object.

    Args:
        recipe: the trained recipe.
        records: the event log.
        skipped: the updates that were skipped.
        outcome: everything else.
    """
    seconds, scores, problem = outcome.seconds, outcome.scores, outcome.problem
    settings, graph, images = recipe.settings, recipe.graph, images_per_step(recipe)
    return {
        "recipe": settings.recipe,
        "data": settings.data_name,
        "seed": settings.seed,
        "precision": settings.precision,
        "device": settings.device,
        "steps": settings.steps,
        "seconds": round(seconds, 3),
        "images_per_second": round(settings.steps * images / seconds, 1) if images and seconds else None,
        "waiting_for_data": None if outcome.waiting is None else round(outcome.waiting, 4),
        "peak_memory_mib": round(outcome.memory, 1),
        "levels": {
            name: {
                **summarize_level([record for record in records if record["level"] == name]),
                "skipped": sum(record["level"] == name for record in skipped),
                **({"reliability": outcome.noise} if outcome.noise and name == graph.top else {}),
            }
            for name in graph.names
        },
        "solvers": {name: solver_settings(graph.problems[name].solver) for name in graph.passes(graph.top)},
        "collapse": find_collapse(records),
        **outcome.findings,
        "evaluation": None if scores is None else [asdict(score) for score in scores],
        "scored_images": _scored_images(recipe) if scores else None,
        "evaluation_problem": None if problem is None else str(problem),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }


def _scored_images(recipe: Recipe) -> dict[str, int]:
    """The number of images of each class that the evaluation scored."""
    assert isinstance(recipe, EncoderRecipe)  # others have no scores
    settings: Any = recipe.settings
    return scored_images(recipe.data, settings.evaluation.split)


def format_findings(findings: Mapping[str, Any], indent: int = 0) -> str:
    """One line for each finding, and for each entry of a finding that is a table."""
    lines = []
    for name, value in findings.items():
        label = f"{' ' * indent}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += [label, format_findings(value, indent + 2)]
        else:
            lines.append(f"{label:<40}{f'{value:.4g}' if isinstance(value, float) else value:>12}")
    return "\n".join(lines)


def summarize_level(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A level's first and last loss, last metrics, median cosine between successive hypergradients, and a summary of
    their solves.

    If every update was skipped, losses are None and metrics empty; the cosine is None without hypergradients.
    """
    count = max(1, round(SHARE * len(records)))
    last = records[-count:]
    solves: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        for level, report in record["solves"].items():
            solves[level].append(report)
    cosines = [record["cosine"] for record in records if record["cosine"] is not None]
    return {
        "updates": len(records),
        "first_loss": _mean(record["loss"] for record in records[:count]),
        "last_loss": _mean(record["loss"] for record in last),
        "last_metrics": {
            key: _mean(record["metrics"].get(key) for record in last) for key in (last[0]["metrics"] if last else ())
        },
        "median_cosine": median(cosines) if cosines else None,
        "solves": {level: summarize_solves(reports) for level, reports in solves.items()},
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the numbers among values; None without any."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def summarize_solves(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over solves, the number of failed solves, and the last cause of a solve that did not converge."""
    residuals = [report["residual"] for report in reports if report["residual"] is not None]
    return {
        "solves": len(reports),
        "failed": sum(report["failed"] for report in reports),
        "evaluations": fmean(report["evaluations"] for report in reports),
        "products": fmean(report["products"] for report in reports),
        "residual": fmean(residuals) if residuals else None,
        "cause": next((report["cause"] for report in reversed(reports) if report["cause"]), ""),
    }


def solver_settings(solver: Solver | None) -> dict[str, Any]:
    """A solver's name and settings."""
    name = next(name for name, kind in SOLVERS.items() if kind is type(solver))
    return {"name": name, **asdict(solver)}  # type: ignore[call-overload]


def peak_memory_mib() -> float:
    """Peak memory of this process so far: allocated GPU memory if a GPU is in use, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts the memory of the process that started this one
        (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        return int(peak) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
