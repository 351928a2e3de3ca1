"""The scores of an evaluation, as a study reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

TRAINED = "trained encoder"

#: encoder, protocol, labels (the share that the protocol was fitted to), metrics ({name: value}).
Row = dict[str, Any]


def score_rows(evaluation: Any) -> list[Row]:
    """Rows from an evaluation, be it a list of rows or ``{encoder: {protocol: accuracy}}``; none from None."""
    if isinstance(evaluation, Mapping):
        return [
            {"encoder": encoder, "protocol": protocol, "labels": 1.0, "metrics": {"accuracy": accuracy}}
            for encoder, protocols in evaluation.items()
            for protocol, accuracy in protocols.items()
        ]
    return [asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row) for row in evaluation or ()]


def values(
    rows_by_seed: Mapping[int, Sequence[Row]], encoder: str, protocol: str, labels: float, metric: str
) -> dict[int, float]:
    """One score of every seed that has it."""
    found = {}
    for seed, rows in rows_by_seed.items():
        for row in rows:
            if (row["encoder"], row["protocol"], row["labels"]) == (encoder, protocol, labels) and metric in row[
                "metrics"
            ]:
                found[seed] = row["metrics"][metric]
    return found
