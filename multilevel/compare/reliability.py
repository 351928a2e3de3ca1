"""The reliability of every solver's hypergradient: ``multilevel compare reliability=K``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from multilevel.compare.measure import prepare, with_share
from multilevel.problems.engine import Hypergradient
from multilevel.problems.hypergradient_noise import COSINES, Estimate
from multilevel.problems.reliability import reliability_of
from multilevel.runs.cpu_threads import cpu_threads
from multilevel.solvers import MultilevelError

#: Columns of the CSV file.
COLUMNS = (
    *("noise", "noise_low", "noise_high", "halves", "halves_low", "halves_high", "mean_cosine", "mean_cosine_limit"),
    *(f"examples_for_{cosine}" for cosine in COSINES),
)
HEADER = ("noise", "halves", "to mean", *(f"ex. for {cosine}" for cosine in COSINES))
WIDTHS = (24, 24, 9, 13, 13)


def add_reliability(
    rows: Sequence[dict[str, Any]],
    common: Mapping[str, Any],
    run: Callable[[Callable[..., dict[str, Any]], dict[str, Any]], dict[str, Any]],
) -> None:
    """Measure the reliability of every row that has a hypergradient, and add it as ``row["reliability"]``.

    Args:
        rows: of the comparison.
        common: what the tasks of all rows have, see ``measure_row``.
        run: calls a function with a task in a separate process.
    """
    print(f"{common['steps']} further steps with the top level held, with each solver", file=sys.stderr, flush=True)
    bar = tqdm([row for row in rows if "problem" not in row], unit="solver", disable=None)
    for row in bar:
        settings = {key: row[key] for key in ("name", "options", "precision", "share")}
        row["reliability"] = run(measure_row, {**common, **settings})
        if bar.disable:
            print(f"reliability of {row['solver']}", file=sys.stderr, flush=True)


def measure_row(task: dict[str, Any]) -> dict[str, Any]:
    """The figures of ``Reliability`` for one row, and under ``failed`` the levels at which a solve failed; or under
    ``problem`` why they are missing.

    The levels below train with the recipe's own solvers, so that every row is measured at the same points.

    Args:
        task: as for ``measure_task``, without output; ``steps`` is the number of hypergradients.
    """
    failed: set[str] = set()
    try:
        engine, recipe, solver = prepare(task)
        top = engine.graph.top
        solvers = None if solver is None else dict.fromkeys(engine.graph.passes(top), solver)
        outer_steps = 1 if solver is None else solver.recorded_outer_steps

        def solve(**record: Any) -> Hypergradient:
            with with_share(engine, solver, task["share"]):
                hypergradient = engine.solve_hypergradient(top, solvers, task["precision"], **record)
            failed.update(level for level, report in hypergradient.reports.items() if report.failed)
            return hypergradient

        with cpu_threads(recipe):
            result = reliability_of(engine, task["steps"], solve, outer_steps)
    except MultilevelError as error:
        return {"problem": " ".join(str(error).split())}
    return {**result.figures(), "failed": sorted(failed)}


def reliability_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The reliability of every row that has it, as text; the best cosine first."""
    measured = [(row["solver"], row["reliability"]) for row in rows if "reliability" in row]
    measured.sort(key=lambda pair: -pair[1]["noise"]["value"] if "noise" in pair[1] else 2.0)
    width = max(40, *(len(solver) + 2 for solver, _ in measured)) if measured else 40
    lines = [_line(f"{'solver':<{width}}", HEADER)]
    for solver, figures in measured:
        name = f"{solver:<{width}}"
        lines.append(f"{name}  {figures['problem']}" if "problem" in figures else _line(name, _cells(figures)))
        if figures.get("failed"):
            lines[-1] += f"  failed at {', '.join(figures['failed'])}"
    complete = [figures for _, figures in measured if "problem" not in figures]
    return "\n".join([*lines, *(_notes(complete[0]) if complete else [])])


def csv_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``COLUMNS`` for a row; empty without reliability."""
    figures = row.get("reliability", {})
    if "noise" not in figures:
        return {}
    intervals = [figures[name][part] for name in ("noise", "halves") for part in ("value", "low", "high")]
    values = [*intervals, figures["cosine"], figures["limit"], *figures["needed"].values()]
    return dict(zip(COLUMNS, values, strict=True))


def _line(name: str, cells: Sequence[str]) -> str:
    return name + "".join(f"{cell:>{wide}}" for cell, wide in zip(cells, WIDTHS, strict=True))


def _cells(figures: Mapping[str, Any]) -> list[str]:
    intervals = [str(Estimate(**figures[name])) for name in ("noise", "halves")]
    if figures["limit"] is None:
        return [*intervals, *["?"] * (1 + len(COSINES))]
    needed = [str(count or "none") for count in figures["needed"].values()]
    return [*intervals, f"{figures['cosine']:.2f}", *needed]


def _notes(figures: Mapping[str, Any]) -> list[str]:
    return [
        f"noise: cosine of a single hypergradient with the mean of the others', {figures['steps']} steps with the top "
        "level held (95% interval)",
        f"halves: cosine of the hypergradients of two halves of a held-out batch, which has {figures['examples']:g} "
        "examples",
        "to mean: cosine with the mean of infinitely many steps; ?: the mean cannot be told from 0",
        "ex. for: the held-out examples that such a cosine needs; none: no number, training's noise sets the limit",
    ]
