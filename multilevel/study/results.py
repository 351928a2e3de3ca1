"""Collects the results of a study into study.json."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import isnan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from multilevel.levels.masks import POLICIES
from multilevel.recipes.evaluation.labels import Amount
from multilevel.reports.plain import plain
from multilevel.reports.texts import Texts
from multilevel.runs.folder import read_results
from multilevel.solvers import MultilevelError
from multilevel.study.images import noise_at_chance
from multilevel.study.inspection import errors_of
from multilevel.study.money import study_money
from multilevel.study.notes import run_warnings, study_notes
from multilevel.study.part import evaluation_problem, is_done, log_path, run_path, transfer_path
from multilevel.study.paths import without_paths
from multilevel.study.plan import Arm, Study, StudyRun, usable_cores
from multilevel.study.scores import MAJORITY, TRAINED, Row, reference_means, values
from multilevel.study.statistics import compare_pairs, summarize_seeds
from multilevel.study.verdict import cost_clause, opening, sentence, times, too_few_images
from multilevel.study.words import labels_in_words, score_in_words

VERSIONS = ("multilevel", "torch", "transformers", "scikit-learn", "scipy", "numpy")
COSTS = ("seconds", "peak_memory_mib")


def collect(study: Study, folder: Path, language: str = "en") -> dict[str, Any]:
    """The study in one object, with sentences in a language; failed parts are named and left out of every mean."""
    texts = Texts(language)
    done = [part for part in study.parts() if is_done(study, folder, part.name)]
    parts = [_part(study, folder, part, texts) for part in done]
    failed = {
        part.name: evaluation_problem(run_path(folder, part.name)) or _last_line(folder, part, texts)
        for part in study.parts()
        if part not in done
    }
    by_arm = {arm.name: [part for part in parts if part["arm"] == arm.name] for arm in study.arms}
    comparisons = _comparisons(study, by_arm, texts)
    most = study.labels[-1]
    headline = next((row for row in comparisons if (row["arm"], row["labels"]) == (study.about.name, most)), None)
    arms = [_arm(arm, by_arm[arm.name], texts) for arm in study.arms]
    if headline is not None:
        sentences = filter(None, [_opening(study, arms, most, texts), headline["sentence"]])
        headline["sentence"] = texts("between_sentences").join(sentences)
    counts: dict[str, int] = next((part["scored_images"] for part in parts), {})
    result = {
        "verdict": headline,
        "question": {
            "data": study.data,
            "score": score_in_words(study.protocol, study.metric, most, texts),
            "score_without_labels": score_in_words(study.protocol, study.metric, 1.0, texts),
            "baseline": study.baseline.name,
            "about": study.about.name,
            "labels": most,
            "split": study.split,
        },
        "comparisons": comparisons,
        "arms": arms,
        "parts": parts,
        "failed": failed,
        "notes": study_notes(counts, study.split, study.labelled, study.labels, texts),
        "inspection": [error for part in done for error in errors_of(study, run_path(folder, part.name), part)],
        "study": {**asdict(study), "inspection_protocol": study.inspection_protocol},
        "machine": {
            "processor": platform.machine(),
            "system": platform.system(),
            "cores": usable_cores(),
            "threads_of_a_part": study.threads,
            "parts_side_by_side": study.jobs,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }
    return without_paths({**result, "money": plain(study_money(result, study.money))})


def _part(study: Study, folder: Path, part: StudyRun, texts: Texts) -> dict[str, Any]:
    run = run_path(folder, part.name)
    summary = read_results(run / "summary.json")
    transfer = read_results(transfer_path(run)) if study.transfer else []
    scores, lost = _numbers(summary["evaluation"] or [], texts)
    moved, lost_there = _numbers(transfer, texts)
    return {
        "name": part.name,
        "arm": part.arm.name,
        "seed": part.seed,
        "steps": part.arm.steps,
        "pretraining_updates": part.arm.updates,
        "seconds": summary["seconds"],
        "peak_memory_mib": summary["peak_memory_mib"],
        "device": summary["device"],
        "scored_images": summary.get("scored_images") or {},  # missing from the summaries of older runs
        "warnings": [*run_warnings(summary, texts), *lost, *lost_there],
        "scores": scores,
        "transfer": moved,
    }


def _numbers(rows: Sequence[Row], texts: Texts) -> tuple[list[Row], list[str]]:
    """Rows without the metrics that are not numbers, and a line for each such metric."""
    finite = [
        {**row, "metrics": {key: value for key, value in row["metrics"].items() if not isnan(value)}} for row in rows
    ]
    lost = [
        texts("study_not_a_number", protocol=row["protocol"], metric=key, labels=labels_in_words(row["labels"], texts))
        for row in rows
        for key, value in row["metrics"].items()
        if isnan(value) and row["encoder"] == TRAINED
    ]
    return finite, lost


def _last_line(folder: Path, part: StudyRun, texts: Texts) -> str:
    log = log_path(folder, part.name)
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else texts("study_not_run")


def _arm(arm: Arm, parts: Sequence[dict[str, Any]], texts: Texts) -> dict[str, Any]:
    return {
        **asdict(arm),
        "description": texts.named("policy", arm.policy, _description(arm.policy)),
        "pretraining_updates": arm.updates,
        "seeds": [part["seed"] for part in parts],
        **{key: asdict(summarize_seeds([part[key] for part in parts])) if parts else None for key in COSTS},
        "scores": _over_seeds({part["seed"]: part["scores"] for part in parts}),
        "transfer": _over_seeds({part["seed"]: part["transfer"] for part in parts}),
    }


def _description(policy: str) -> str:
    """The first line about a policy without a text, such as a user's own."""
    return (inspect.getdoc(POLICIES[policy]) or policy).splitlines()[0]


def _over_seeds(rows_by_seed: Mapping[int, Sequence[Row]]) -> list[dict[str, Any]]:
    """A summary of each score: encoder, protocol, labels and the images that they come to (None in runs of earlier
    versions), metric, mean, median, interval, and the values by seed."""
    keys = {
        (row["encoder"], row["protocol"], row["labels"], metric): row.get("images")
        for rows in rows_by_seed.values()
        for row in rows
        for metric in row["metrics"]
    }
    summaries = []
    for key, images in keys.items():
        by_seed = values(rows_by_seed, *key)
        names = dict(zip(("encoder", "protocol", "labels", "metric"), key, strict=True))
        summaries.append(
            {**names, "images": images, **asdict(summarize_seeds(list(by_seed.values()))), "values": by_seed}
        )
    return summaries


def _comparisons(study: Study, by_arm: Mapping[str, Sequence[dict[str, Any]]], texts: Texts) -> list[dict[str, Any]]:
    """Compare every arm with the baseline at every amount of labels, on the study's metric."""

    def scores(arm: Arm, labels: Amount) -> dict[int, float]:
        rows = {part["seed"]: part["scores"] for part in by_arm[arm.name]}
        by_seed = values(rows, TRAINED, study.protocol, labels, study.metric)
        if rows and not by_seed:
            _no_such_score(study, rows)
        return by_seed

    comparisons = []
    counts: dict[str, int] = next((part["scored_images"] for parts in by_arm.values() for part in parts), {})
    too_few = too_few_images(study.metric, counts, study.minimum_effect, study.split, texts)
    for labels in study.labels:
        baseline = scores(study.baseline, labels)
        chance = _chance(study, by_arm, labels)
        noise = noise_at_chance(study.metric, counts, chance)
        for arm in study.arms[1:]:
            arm_scores = scores(arm, labels)
            pairs = sorted(arm_scores.keys() & baseline.keys())
            if not pairs:
                continue
            comparison = compare_pairs(arm_scores, baseline, study.minimum_effect, chance, noise)
            costs = {key: _ratio(by_arm[arm.name], by_arm[study.baseline.name], pairs, key) for key in COSTS}
            cost = cost_clause(study.equal, times(*costs["seconds"]), arm.updates / study.baseline.updates, texts)
            names = (arm.name, study.baseline.name, score_in_words(study.protocol, study.metric, labels, texts))
            comparisons.append(
                {
                    "arm": arm.name,
                    "labels": labels,
                    "sentence": sentence(comparison, *names, study.minimum_effect, cost, texts, too_few),
                    **asdict(comparison),
                    "cost_ratio": {key: ratio for key, (ratio, _) in costs.items()},
                    "cost_ratio_error": {key: error for key, (_, error) in costs.items()},
                }
            )
    return comparisons


def _opening(study: Study, arms: Sequence[dict[str, Any]], labels: Amount, texts: Texts) -> str:
    """The references that the best arm does not surpass, in a sentence; empty if it surpasses all."""
    key = {"encoder": TRAINED, "protocol": study.protocol, "labels": labels, "metric": study.metric}
    means = {arm["name"]: row["mean"] for arm in arms for row in arm["scores"] if key.items() <= row.items()}
    best = max(means, key=lambda name: means[name])
    references = reference_means(arms, "scores", study.protocol, labels, study.metric)
    score = score_in_words(study.protocol, study.metric, labels, texts)
    return opening((best, means[best]), references, score, texts)


def _chance(study: Study, by_arm: Mapping[str, Sequence[dict[str, Any]]], labels: Amount) -> float:
    """The score of always predicting the most frequent class; 0 for a task without one class per image."""
    rows = {part["seed"]: part["scores"] for part in by_arm[study.baseline.name]}
    return fmean(values(rows, MAJORITY, study.protocol, labels, study.metric).values() or [0.0])


def _ratio(
    arm: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]], seeds: Sequence[int], key: str
) -> tuple[float, float | None]:
    """An arm's mean cost over some seeds, divided by the baseline's, and the standard error of the mean of the seeds'
    ratios; None with one seed."""
    costs, compared = ({part["seed"]: part[key] for part in parts} for parts in (arm, baseline))
    ratios = [costs[seed] / compared[seed] for seed in seeds]
    ratio = fmean(costs[seed] for seed in seeds) / fmean(compared[seed] for seed in seeds)
    return ratio, stdev(ratios) / sqrt(len(ratios)) if len(ratios) > 1 else None


def _no_such_score(study: Study, rows_by_seed: Mapping[int, Sequence[Row]]) -> None:
    rows = [row for rows in rows_by_seed.values() for row in rows if row["encoder"] == TRAINED]
    offers = sorted(
        {f"{row['protocol']} {metric} at labels={row['labels']}" for row in rows for metric in row["metrics"]}
    )
    raise MultilevelError(
        f"there is no score {study.protocol} {study.metric} at labels={study.labels}; available: {', '.join(offers)}; "
        "set protocol and metric in study.yaml and resume, nothing is trained again"
    )
