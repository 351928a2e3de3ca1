"""The results of a replay, see ``multilevel.problems.replay``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

#: A slope is resolved if both step sizes agree within this share.
AGREEMENT = 0.1
LOSS = "loss"
TITLES, WIDTHS = ("first half", "predicted", "second half", "predicted"), (20, 20, 20, 20)


@dataclass(frozen=True)
class Slope:
    """The slope of a measure along a direction of the top level's variables, per unit of length; above 0 if the measure
    rises along it.

    Attributes:
        measured: the central difference with the larger step in each replay.
        halved: the same with half the step.
        predicted: the product of the direction and the hypergradient on the same batches and draws, at the unmoved
            point; empty for measures other than the upper loss, and for directions that no solver gave.
    """

    measured: Sequence[float]
    halved: Sequence[float]
    predicted: Sequence[float] = ()

    @property
    def agrees(self) -> bool:
        """Whether the mean slopes with both steps differ by at most ``AGREEMENT`` of the larger."""
        large, small = fmean(self.measured), fmean(self.halved)
        return abs(large - small) <= AGREEMENT * max(abs(large), abs(small))


@dataclass(frozen=True)
class ReplayRow:
    """The slopes of a measure along a solver's two directions.

    Attributes:
        solver: its label.
        outer_steps: updates of the top level's schedule, with the top level held, before measuring.
        draws: held (those of the unmoved network) or renewed (drawn again from the same noise).
        measure: ``loss`` for the upper loss, or another measure's name.
        halves: the slopes along two directions, each the mean of half of the hypergradients.
    """

    solver: str
    outer_steps: int
    draws: str
    measure: str
    halves: tuple[Slope, Slope]

    @property
    def resolved(self) -> bool:
        """Whether both directions have slopes of one sign, and the same with either step."""
        first, second = (fmean(half.measured) for half in self.halves)
        return first * second > 0 and all(half.agrees for half in self.halves)


@dataclass(frozen=True)
class Replay:
    """The slopes of a replay.

    Attributes:
        rows: one for each solver, number of outer steps, kind of draws and measure.
        problems: solvers without a direction, and why.
        size: length of the larger step, as a share of the norm of the top level's variables.

    Examples:
        >>> slope = Slope([0.004, 0.006], [0.0041, 0.0058], [0.0049, 0.0051])
        >>> row = ReplayRow("unrolled", 8, "held", "loss", (slope, slope))
        >>> row.resolved, len(str(Replay([row], {}, size=0.02)).splitlines())
        (True, 3)
    """

    rows: Sequence[ReplayRow]
    problems: Mapping[str, str]
    size: float

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Replay:
        """The replay that ``as_dict`` stored."""
        rows = []
        for row in stored["rows"]:
            first, second = (Slope(**half) for half in row["halves"])
            place = {key: row[key] for key in ("solver", "outer_steps", "draws", "measure")}
            rows.append(ReplayRow(**place, halves=(first, second)))
        return cls(rows, stored["problems"], stored["size"])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**asdict(row), "resolved": row.resolved} for row in self.rows]
        return {"size": self.size, "problems": dict(self.problems), "rows": rows}

    def __str__(self) -> str:
        """A table for each measure and kind of draws: a line for each solver and number of outer steps."""
        width = max([10, *(len(row.solver) + 2 for row in self.rows)])
        lines = []
        for measure, draws in dict.fromkeys((row.measure, row.draws) for row in self.rows):
            rows = [row for row in self.rows if (row.measure, row.draws) == (measure, draws)]
            lines += ["", f"slope of {measure} in 1e-3, draws {draws}: mean ± standard deviation over replays"]
            header = "".join(f"{title:>{wide}}" for title, wide in zip(TITLES, WIDTHS, strict=True))
            lines.append(f"{'solver':<{width}}{'steps':>6}{header}")
            lines += [_line(row, width) for row in rows]
        lines += [f"{solver}: {problem}" for solver, problem in self.problems.items()]
        return "\n".join(lines).lstrip("\n")


def _line(row: ReplayRow, width: int) -> str:
    values = [values for half in row.halves for values in (half.measured, half.predicted)]
    cells = "".join(f"{_cell(value):>{wide}}" for value, wide in zip(values, WIDTHS, strict=True))
    verdict = "" if row.resolved else "  not resolved"
    return f"{row.solver:<{width}}{row.outer_steps:>6}{cells}{verdict}"


def _cell(values: Sequence[float]) -> str:
    """Mean and standard deviation in 1e-3."""
    if not values:
        return "-"
    spread = f" ± {_short(1e3 * stdev(values))}" if len(values) > 1 else ""
    return f"{'+' if fmean(values) >= 0 else ''}{_short(1e3 * fmean(values))}{spread}"


def _short(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
