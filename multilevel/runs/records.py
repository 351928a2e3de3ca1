"""Reads the lines of metrics.jsonl and diagnosis.jsonl, of which a disk may have damaged some."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from multilevel.solvers.files import parse_json, read_whole

SKIPPED = "skipped"
NOTICE = "notice"
Record = dict[str, Any]
_NUMBER = (int, float, type(None))  # None stands for a number that is not finite
_REPORT = {"evaluations", "products", "residual", "failed", "cause"}  # what a solve's report has
#: What the line of an update has, with the types.
_UPDATE: dict[str, Any] = {
    "level": str,
    "loss": _NUMBER,
    "metrics": dict,
    "gradient_norm": _NUMBER,
    "solves": dict,
    "cosine": _NUMBER,
    "seconds": (int, float),
}


def read_records(path: Path) -> tuple[list[Record], list[int]]:
    """The records of a file of lines, and the numbers of damaged lines, from 1.

    A last line that a killed run left half written is ignored; a missing file has no lines.

    >>> path = folder / "metrics.jsonl"
    >>> folder.mkdir()
    >>> _ = path.write_bytes(b'{"step": 0, "notice": "a"}\\n{"st\\xff\\n{"step": 1, "notice": "b"}\\n{"ste')
    >>> read_records(path)
    ([{'step': 0, 'notice': 'a'}, {'step': 1, 'notice': 'b'}], [2])
    """
    lines = read_whole(path).split(b"\n")[:-1] if path.exists() else []
    read = [_record(line) for line in lines]
    damaged = [number for number, record in enumerate(read, start=1) if record is None]
    return [record for record in read if record is not None], damaged


def is_update(record: Record, levels: Collection[str | None] | None = None) -> bool:
    """Whether a record is an intact line of an event log: an update, a skipped update, or a notice.

    Args:
        record: with an integer step.
        levels: the names of the run's levels; None: any.
    """
    if NOTICE in record:
        return isinstance(record[NOTICE], str)
    if levels is not None and record.get("level") not in levels:
        return False
    if SKIPPED in record:
        return isinstance(record[SKIPPED], str) and isinstance(record.get("level"), str)
    if not all(name in record and isinstance(record[name], kind) for name, kind in _UPDATE.items()):
        return False
    measured = all(isinstance(value, _NUMBER) for value in record["metrics"].values())
    return measured and all(
        isinstance(report, dict) and report.keys() >= _REPORT for report in record["solves"].values()
    )


def as_lines(records: Iterable[Record]) -> str:
    """Records as the text of a file."""
    return "".join(f"{json.dumps(record)}\n" for record in records)


def _record(line: bytes) -> Record | None:
    try:
        record = parse_json(line.decode())
    except ValueError:
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None
