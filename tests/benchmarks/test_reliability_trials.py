"""The trials find nothing bad; a small part of them runs here, all of them with ``-m slow``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reliability_trials.py"


def rows_of(output: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), "--output", str(output), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return [json.loads(line) for line in output.read_text().splitlines()]


def bad(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["problems"]]


def test_a_small_part_of_the_trials_finds_nothing(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.jsonl", "--share", "0.004")
    assert len(rows) > 10
    assert bad(rows) == []


@pytest.mark.slow
def test_the_trials_find_nothing(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.jsonl")
    assert len(rows) > 2500
    assert bad(rows) == []
    assert sum(row["timed_out"] for row in rows) < 10
