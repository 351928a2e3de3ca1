"""Tries to break the command line: kills, damage, full disks, hostile files, odd names, bad input, several processes.

Bad is a crash, a traceback, a lost or replaced file, code that ran, a bit that differs, and the refusal of valid input.
A command that does not end in time, as under load, is counted by itself. Trials already in the output are not repeated.

    python benchmarks/reliability_trials.py --output reliability.jsonl            # all trials
    python benchmarks/reliability_trials.py --output reliability.jsonl --kinds ranks      # by the titles
    python benchmarks/reliability_trials.py --output small.jsonl --share 0.02     # every 50th trial of each kind
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from kept_rows import append_row, read_rows
from tqdm import tqdm
from trials import ALL
from trials.base import KINDS, SCRATCH, Run, TimedOutError

SEED = 0


def attempt(kind: str, name: str, run: Run) -> dict[str, Any]:
    """The row of a trial."""
    row: dict[str, Any] = {"kind": kind, "trial": name, "problems": [], "timed_out": False}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            row["problems"] = run(Path(folder))
        except TimedOutError:
            row["timed_out"] = True
        except Exception as error:  # what the command wrote is not what the trial reads
            row["problems"] = [f"{type(error).__name__}: {error}"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each kind: trials, bad ones, those not in time; below it the bad trials by name."""
    lines = ["| trials | number | bad | not in time |", "|---|---|---|---|"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        bad, late = sum(bool(row["problems"]) for row in own), sum(row["timed_out"] for row in own)
        lines.append(f"| {kind} | {len(own)} | {bad} | {late} |")
    for row in rows:
        lines += [f"- {row['kind']}, {row['trial']}: {'; '.join(row['problems'])}"] if row["problems"] else []
    return "\n".join(lines)


def chosen(kinds: list[str], share: float) -> list[tuple[str, str, Run]]:
    """The trials of some kinds, or an equally spaced share of them, at least one of each."""
    trials = []
    for kind in kinds:
        own = [(kind, *named) for named in KINDS[kind](random.Random(SEED))]
        trials += own[:: max(1, min(len(own), round(1 / share)))]
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each kind")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--print", action="store_true", help="only print the rows of the output")
    arguments = parser.parse_args()
    assert ALL
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    rows = read_rows(arguments.output)
    done = {(row["kind"], row["trial"]) for row in rows}
    trials = [] if arguments.print else chosen(arguments.kinds, arguments.share)
    with tempfile.TemporaryDirectory() as scratch:
        SCRATCH.append(Path(scratch))
        for kind, name, run in tqdm([trial for trial in trials if trial[:2] not in done], disable=None):
            rows.append(attempt(kind, name, run))
            append_row(arguments.output, rows[-1])
    print(table(rows))


if __name__ == "__main__":
    main()
