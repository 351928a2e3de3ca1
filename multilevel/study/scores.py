"""Reads the scores of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from multilevel.recipes.evaluation.labels import Amount
from multilevel.recipes.evaluation.supervised import COLUMN

TRAINED, MAJORITY = "trained encoder", "majority class"

#: encoder, protocol, labels (the amount that the protocol was fitted to), metrics ({name: value}).
Row = dict[str, Any]


def values(
    rows_by_seed: Mapping[int, Sequence[Row]], encoder: str, protocol: str, labels: Amount, metric: str
) -> dict[int, float]:
    """The values of one score, for every seed that has it."""
    key = {"encoder": encoder, "protocol": protocol, "labels": labels}
    return {
        seed: row["metrics"][metric]
        for seed, rows in rows_by_seed.items()
        for row in rows
        if key.items() <= row.items() and metric in row["metrics"]
    }


def reference_means(
    arms: Sequence[Mapping[str, Any]], table: str, protocol: str, labels: Amount, metric: str
) -> dict[str, float]:
    """Means over seeds of the encoders that no arm trains: untrained, raw pixels, majority class, supervised.

    Args:
        arms: the arms of study.json; means are averaged over those that have them.
        table: scores or transfer.
        protocol, labels, metric: of the score; the supervised classifier, which no protocol is fitted to, has its own.
    """
    means: dict[str, list[float]] = {}
    for row in (row for arm in arms for row in arm[table]):
        fits = row["protocol"] in (protocol, COLUMN) and (row["labels"], row["metric"]) == (labels, metric)
        if fits and row["encoder"] != TRAINED:
            means.setdefault(row["encoder"], []).append(row["mean"])
    return {encoder: fmean(values) for encoder, values in means.items()}
