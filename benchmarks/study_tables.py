"""The scores of `multilevel study`, kept as rows, and as a table of differences from the baseline.

Rows of one comparison can come from several studies, such as other seeds on another day. What `multilevel evaluate`
has scored besides, on the same encoders, is taken from their folders.

    python benchmarks/study_tables.py docs/results/NAME.jsonl --add runs/STUDY    # adds the rows that are not there yet
    python benchmarks/study_tables.py docs/results/NAME.jsonl                     # prints the table
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from multilevel.recipes.evaluation.labels import labels_phrase
from multilevel.study.scores import TRAINED
from multilevel.study.statistics import compare_pairs

Row = dict[str, Any]
Column = tuple[str, str, str]  # protocol, amount of labels, metric
MINIMUM_EFFECT = 0.01


def rows_of(study: Path) -> list[Row]:
    """One row of each part of a study: its arm, seed, costs, and all scores of the trained encoder."""
    result = json.loads((study / "study.json").read_text())
    settings = {arm["name"]: " ".join(arm["settings"]) for arm in result["arms"]}
    costs = ("arm", "seed", "pretraining_updates", "seconds", "peak_memory_mib")
    return [
        {
            **{key: part[key] for key in costs},
            "settings": settings[part["arm"]],
            "scores": [
                [one["protocol"], str(one["labels"]).removesuffix(".0"), metric, round(value, 5)]
                for one in [*part["scores"], *_evaluated(study / "runs" / part["name"] / "evaluation.json")]
                if one["encoder"] == TRAINED
                for metric, value in one["metrics"].items()
            ],
            "warnings": part["warnings"],
        }
        for part in result["parts"]
    ]


def _evaluated(path: Path) -> list[Row]:
    return json.loads(path.read_text()) if path.exists() else []


def table(rows: list[Row], metrics: list[str]) -> str:
    """Medians and ranges over seeds in percent; mean paired differences from the first arm, with 95% intervals."""
    arms: dict[str, dict[Column, dict[int, float]]] = {}
    for row in rows:
        for protocol, labels, metric, value in row["scores"]:
            if metric in metrics:
                arms.setdefault(row["arm"], {}).setdefault((protocol, labels, metric), {})[row["seed"]] = value
    columns = list(dict.fromkeys(column for scores in arms.values() for column in scores))
    titles = [f"{protocol} {metric}, {_labels(labels)}" for protocol, labels, metric in columns]
    lines = [f"| masks | seeds | seconds | {' | '.join(titles)} |", "|---" * (len(columns) + 3) + "|"]
    baseline = next(iter(arms))
    for arm, scores in arms.items():
        seconds = median(row["seconds"] for row in rows if row["arm"] == arm)
        seeds = max(len(values) for values in scores.values())
        cells = [cell(scores.get(column, {}), arms[baseline][column], arm == baseline) for column in columns]
        lines.append(f"| {arm} | {seeds} | {seconds:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _labels(text: str) -> str:
    """An amount of labels in words; a share as a percentage."""
    if not text.replace(".", "").isdecimal():
        return labels_phrase(text)
    return f"{float(text):.0%} of the labels" if float(text) <= 1 else labels_phrase(float(text))


def cell(values: dict[int, float], baseline: dict[int, float], is_baseline: bool) -> str:
    """Median and range over seeds in percent; mean paired difference from the baseline, with its 95% interval."""
    if not values:
        return ""
    found = list(values.values())
    text = f"{100 * median(found):.1f} ({100 * min(found):.1f} to {100 * max(found):.1f})"
    if is_baseline or not values.keys() & baseline.keys():
        return text
    result = compare_pairs(values, baseline, MINIMUM_EFFECT)
    interval = result.interval and f" ({100 * result.interval[0]:+.1f} to {100 * result.interval[1]:+.1f})"
    return f"{text}; {100 * result.mean:+.1f}{interval or ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="folders of studies")
    parser.add_argument("--metrics", nargs="*", default=["accuracy"])
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.rows.read_text().splitlines()] if asked.rows.exists() else []
    known = {(row["arm"], row["seed"]) for row in rows}
    new = [row for study in asked.add for row in rows_of(study) if (row["arm"], row["seed"]) not in known]
    asked.rows.parent.mkdir(parents=True, exist_ok=True)
    with asked.rows.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in new)
    print(table([*rows, *new], asked.metrics))


if __name__ == "__main__":
    main()
