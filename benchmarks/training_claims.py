"""Do claims about training hold with every seed? The claims of tests/ (see tests/claims.py), with five seeds each, and
with these again from starting weights moved by a millionth, as another processor's rounding would.

Prints a row for each claim: the values of both, how far the worst of them is from the threshold in standard deviations
of all ten, and whether the claim holds: in every run, with at least two of these to spare. Runs whose rows are in the
output are not repeated, unless the code has changed since: a row has a hash of it. Where a claim
measures something else than before, delete its rows. The exit status is 1 while a claim does not hold, or has not been
run with the code as it is.

    python benchmarks/training_claims.py                      # all: about an hour on one core
    python benchmarks/training_claims.py --only maml readme   # files or claims that have this in their names
    python benchmarks/training_claims.py --only none          # prints what the output holds
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
sys.path += [str(ROOT), str(TESTS)]  # the root first: tests/package is no package

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
    """A hash of what the code does: of its syntax trees without docstrings, and of its configurations."""
    digest = hashlib.sha1()
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*")):
        if path.suffix == ".py":
            digest.update(f"{path.relative_to(ROOT)} {ast.dump(without_docstrings(path.read_text()))}".encode())
        elif path.suffix == ".yaml":
            values = yaml.safe_load(path.read_text())
            digest.update(f"{path.relative_to(ROOT)} {json.dumps(values, sort_keys=True)}".encode())
    return digest.hexdigest()[:8]


def without_docstrings(text: str) -> ast.Module:
    """The syntax tree of a file, which has no comments either."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return tree


def measure(name: str, claims: Claims, seed: int, moved: float, version: str) -> Row:
    start = time.process_time()
    with redirect_stdout(StringIO()):  # what programs print
        values = {number: float(f"{value:.5g}") for number, value in claims.values(seed, moved).items()}
    spent = round(time.process_time() - start, 1)
    return {"claims": name, "seed": seed, "moved": moved, "code": version, "values": values, "cpu_seconds": spent}


def is_current(row: Row | None, claims: Claims, version: str) -> bool:
    """Whether a row is there, of the numbers claimed now, and of code that has not changed since."""
    return row is not None and row.get("code") == version and row["values"].keys() == claims.bounds.keys()


def verdict(bound: Bound, values: list[float]) -> str:
    if len(values) < len(SEEDS) * len(MOVED):
        return f"{len(values)} of {len(SEEDS) * len(MOVED)} runs"
    return "yes" if all(map(bound.holds, values)) and bound.room(values) >= ROOM else "NO"


def table(claims: dict[str, Claims], rows: dict[Key, Row], version: str) -> tuple[str, bool]:
    """A row for each claim, and whether all of them hold of the code as it is."""
    titles = ["claim", "seeds 0 to 4", "moved weights", "room", "holds", "code", "CPU seconds"]
    lines, good = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"], True
    for name, claim in claims.items():
        own = [
            rows[key] for key in keys_of([name]) if key in rows and rows[key]["values"].keys() == claim.bounds.keys()
        ]
        versions = sorted({row.get("code", "older") for row in own})
        for number, bound in claim.bounds.items():
            values = [row["values"][number] for row in own]
            by_start = [[f"{row['values'][number]:.3g}" for row in own if row["moved"] == moved] for moved in MOVED]
            cells = [
                f"{name} {number} {bound}",
                *map(" ".join, by_start),
                f"{bound.room(values):.1f}" if len(values) > 1 else "",
                verdict(bound, values),
                ", ".join(versions),
                f"{max((row['cpu_seconds'] for row in own), default=0):.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
            good = good and versions == [version] and cells[4] == "yes"
    return "\n".join(lines), good


def keys_of(names: list[str]) -> list[Key]:
    return [(name, seed, moved) for moved in MOVED for seed in SEEDS for name in names]  # a first look comes early


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
    missing = [key for key in keys_of(chosen) if not is_current(rows.get(key), claims[key[0]], version)]
    for key in (progress := tqdm(missing, unit="run")):
        name, seed, moved = key
        progress.set_postfix_str(name)
        rows[key] = measure(name, claims[name], seed, moved, version)
        kept = [json.dumps(rows[key]) for key in sorted(rows) if key[0] in claims]
        asked.output.write_text("\n".join(kept) + "\n")
    text, good = table(claims, rows, version)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
