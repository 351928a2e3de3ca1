"""The table of ``multilevel compare``: as text, as HTML for notebooks, and loaded from its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multilevel.problems.html import html_table
from multilevel.problems.reference import LARGEST_RESIDUAL
from multilevel.solvers.files import parse_json

COLUMNS = ("error", "cosine", "cosine_unrolled", "residual", "memory_mib", "seconds", "evaluations", "products")
HEADER = ("error", "cosine", "unrolled", "residual", "MiB", "seconds", "evals", "prods")
WIDTHS = (9, 8, 10, 10, 9, 9, 7, 7)


@dataclass(frozen=True)
class ComparisonTable:
    """The cost and accuracy of every solver's hypergradient, most exact first.

    Args:
        result: the contents of ``compare.json``.
    """

    result: dict[str, Any]

    @classmethod
    def load(cls, path: Path | str) -> ComparisonTable:
        """Load a ``compare.json``.

        Raises:
            OSError: it cannot be read.
        """
        return cls(parse_json(Path(path).read_text()))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The solvers, most exact first; those without a result last."""
        rows = self.result["rows"]
        return sorted(rows, key=lambda row: (row.get("error") is None, row.get("error") or 0.0, "problem" in row))

    @property
    def notes(self) -> list[str]:
        """The choices of ``auto``, the meaning of ``opposite``, and the reference."""
        reference = self.result["reference"]
        notes = [f"{row['solver']}: {row['choice']}" for row in self.result["rows"] if row.get("choice")]
        if any("opposite" in _remarks(row) for row in self.result["rows"] if "problem" not in row):
            notes.append("opposite: the cosine is negative, so the answer points against that reference")
        unrolled = reference.get("unrolled")
        if unrolled is not None and "problem" in unrolled:
            notes.append(f"no cosine with unrolled updates: {unrolled['problem']}")
        elif unrolled is not None:
            notes.append(
                "cosine: with the reference, a stationary point; unrolled: with the derivative through the updates of "
                "this step, in their order"
            )
        if "problem" in reference:
            return [*notes, f"no reference: {reference['problem']}"]
        solvers = ", ".join(f"{solver} at {level}" for level, solver in reference["solver"].items())
        how = f"float64, damping {self.result['damping']:g}, residual {reference['residual']:.2g}"
        notes.append(f"reference: {solvers}, {how}")
        if not reference["usable"]:
            limit = f"the reference's residual is above {LARGEST_RESIDUAL:g}"
            notes.append(f"no error column: {limit}; raise iterations or damping")
        return notes

    def __str__(self) -> str:
        width = max(40, *(len(row["solver"]) + 2 for row in self.rows))
        lines = [f"{'solver':<{width}}{''.join(f'{name:>{wide}}' for name, wide in zip(HEADER, WIDTHS, strict=True))}"]
        for row in self.rows:
            if "problem" in row:
                lines.append(f"{row['solver']:<{width}}  {row['problem']}")
                continue
            cells = "".join(f"{cell:>{wide}}" for cell, wide in zip(_cells(row), WIDTHS, strict=True))
            lines.append(f"{row['solver']:<{width}}{cells}{_remarks(row)}")
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        rows = [
            (row["solver"], row["problem"]) if "problem" in row else (row["solver"] + _remarks(row), *_cells(row))
            for row in self.rows
        ]
        return html_table(("solver", *HEADER), rows, self.notes)


def _cells(row: dict[str, Any]) -> list[str]:
    values = [row.get(name) for name in COLUMNS]  # earlier comparisons have no cosine with unrolled updates
    return ["-" if value is None else str(value) if isinstance(value, int) else f"{value:.3g}" for value in values]


def points_against(row: Mapping[str, Any]) -> bool:
    """Whether a row's hypergradient has a negative cosine with the reference."""
    return (row.get("cosine") or 0.0) < 0


def _remarks(row: dict[str, Any]) -> str:
    against = ["reference"] * points_against(row) + ["unrolled"] * ((row.get("cosine_unrolled") or 0.0) < 0)
    failed = f"  failed at {', '.join(row['failed'])}" if row["failed"] else ""
    return (f"  opposite to {'both' if len(against) > 1 else against[0]}" if against else "") + failed
