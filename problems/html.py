"""HTML tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()) -> str:
    """An HTML table with notes below it. In a row with fewer cells than the header, the last cell spans the rest."""

    def cells(row: Sequence[object]) -> str:
        columns = len(header) - len(row) + 1
        wide = [*[""] * (len(row) - 1), f' colspan="{columns}"' if columns > 1 else ""]
        return "".join(f"<td{span}>{escape(str(cell))}</td>" for cell, span in zip(row, wide, strict=True))

    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
