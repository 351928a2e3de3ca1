"""Do claims about training hold with every seed? The claims of tests/ (see tests/claims.py), with five seeds each, and
with these again from starting weights moved by a millionth, as another processor's rounding would.

Prints a row for each claim: the values of both, how far the worst of them is from the threshold in standard deviations
of all ten, and whether the claim holds: in every run, with at least two of these to spare. Rows in the output are
not run again, unless the code has changed since: a row has the last commit that changed it. The exit status is 1 while
a claim does not hold or has not been run with the code as it is.

    python benchmarks/training_claims.py                      # all: an hour or two on one core
    python benchmarks/training_claims.py --only maml readme   # files or claims that have this in their names
    python benchmarks/training_claims.py --only none          # prints what the output holds
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
sys.path += [str(ROOT), str(TESTS)]  # the root first: tests/multilevel is no package

from claims import Bound, Claims  # noqa: E402

ROOMS = ("multilevel", "recipes", "levels", "problems", "solvers")
SEEDS, MOVED = range(5), (0.0, 1e-6)
ROOM = 2.0  # standard deviations that a claim has to spare
Row = dict[str, Any]
Key = tuple[str, int, float]


def all_claims() -> dict[str, Claims]:
    """The claims of all test files, by file and name."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "from claims import" in path.read_text():
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec
            assert spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            claims = {name: value for name, value in vars(module).items() if isinstance(value, Claims)}
            found.update({f"{path.relative_to(TESTS)}::{name}": value for name, value in claims.items()})
    return found


def code_version() -> str:
    """The last commit that changed the code, with a plus sign where it has changes that are not committed."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments, "--", *ROOMS], capture_output=True, text=True, check=True
        ).stdout

    return git("log", "-1", "--format=%h").strip() + ("+" if git("status", "--porcelain") else "")


def measure(name: str, claims: Claims, seed: int, moved: float, version: str) -> Row:
    start = time.process_time()
    values = {number: round(value, 5) for number, value in claims.values(seed, moved).items()}
    spent = round(time.process_time() - start, 1)
    return {"claims": name, "seed": seed, "moved": moved, "commit": version, "values": values, "cpu_seconds": spent}


def holds(bound: Bound, values: list[float]) -> bool:
    return all(map(bound.holds, values)) and bound.room(values) >= ROOM


def table(claims: dict[str, Claims], rows: dict[Key, Row], version: str) -> tuple[str, bool]:
    """A row for each claim, and whether all of them hold."""
    titles = ["claim", "seeds 0 to 4", "moved weights", "room", "holds", "commit", "CPU seconds"]
    lines, good = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"], True
    for name, claim in claims.items():
        own = [[rows[name, seed, moved] for seed in SEEDS if (name, seed, moved) in rows] for moved in MOVED]
        both = [row for some in own for row in some]
        commits = sorted({row["commit"] for row in both})
        for number, bound in claim.bounds.items():
            values = [row["values"].get(number, math.nan) for row in both]
            complete = len(values) == len(SEEDS) * len(MOVED) and commits == [version]
            verdict = "not run" if not values else "yes" if holds(bound, values) else "NO"
            good = good and complete and verdict == "yes"
            cells = [
                f"{name} {number} {bound}",
                *(" ".join(f"{row['values'].get(number, math.nan):.3g}" for row in some) for some in own),
                f"{bound.room(values):.1f}" if len(values) > 1 else "",
                verdict,
                ", ".join(commits),
                f"{max(row['cpu_seconds'] for row in both):.0f}" if both else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines), good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="parts of the names of claims to run")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "training_claims.jsonl")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    claims, version = all_claims(), code_version()
    lines = asked.output.read_text().splitlines() if asked.output.exists() else []
    rows = {(row["claims"], row["seed"], row["moved"]): row for row in map(json.loads, lines)}
    chosen = [name for name in claims if asked.only is None or any(part in name for part in asked.only)]
    keys = [(name, seed, moved) for name in chosen for seed in SEEDS for moved in MOVED]
    missing = [key for key in keys if key not in rows or rows[key]["commit"] != version or version.endswith("+")]
    for key in (progress := tqdm(missing, unit="run")):
        name, seed, moved = key
        progress.set_postfix_str(name)
        rows[key] = measure(name, claims[name], seed, moved, version)
        kept = [row for _, row in sorted(rows.items()) if row["claims"] in claims]
        asked.output.write_text("".join(json.dumps(row) + "\n" for row in kept))
    text, good = table(claims, rows, version)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
