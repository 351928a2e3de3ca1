"""Reads the scores of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TRAINED = "trained encoder"

#: encoder, protocol, labels (the share that the protocol was fitted to), metrics ({name: value}).
Row = dict[str, Any]


def values(
    rows_by_seed: Mapping[int, Sequence[Row]], encoder: str, protocol: str, labels: float, metric: str
) -> dict[int, float]:
    """The values of one score, for every seed that has it."""
    key = {"encoder": encoder, "protocol": protocol, "labels": labels}
    return {
        seed: row["metrics"][metric]
        for seed, rows in rows_by_seed.items()
        for row in rows
        if key.items() <= row.items() and metric in row["metrics"]
    }
