"""Scores as a table."""

from __future__ import annotations

from collections.abc import Mapping

HEADING = "test accuracy"
TITLES = {"linear_probe": "linear probe", "knn": "nearest neighbours"}


def format_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each encoder, a column for each protocol, in percent of the test images."""
    protocols = list(next(iter(scores.values())))
    titles = [TITLES.get(protocol, protocol) for protocol in protocols]
    width = max(len(name) for name in [HEADING, *scores])
    lines = [HEADING.ljust(width) + "".join(f"  {title}" for title in titles)]
    for name, row in scores.items():
        cells = (f"{100 * row[protocol]:.1f}%" for protocol in protocols)
        lines.append(name.ljust(width) + "".join(f"  {cell:>{len(t)}}" for cell, t in zip(cells, titles, strict=True)))
    return "\n".join(lines)
