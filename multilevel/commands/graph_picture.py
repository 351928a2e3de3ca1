"""Draws the levels of a graph, which reads which, and the path of the top level's hypergradient."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from multilevel.problems import Graph
from multilevel.recipes.pictures.figures import new_figure, save_figure
from multilevel.solvers import SOLVERS

BOX_WIDTH, BOX_HEIGHT, SPACING = 4.4, 1.0, 2.0
READS, RESPONDS = "#4a4a4a", "#c0392b"


def draw_graph(path: Path, graph: Graph) -> None:
    """Draw the levels as boxes, top level first, and an arrow from each level to each level that it reads.

    Arrows go down on the right and up on the left; long ones go around short ones.

    Args:
        path: the PNG to write.
        graph: the levels.
    """
    count = len(graph.names)
    places = {name: index * SPACING for index, name in enumerate(graph.names)}
    edges = [(reader, other) for reader, others in graph.reads.items() for other in others]
    margin = 0.3 + max((_bulge(abs(places[reader] - places[other])) for reader, other in edges), default=0.0)
    width, height = BOX_WIDTH + 2 * margin, (count - 1) * SPACING + BOX_HEIGHT + 0.4
    figure = new_figure(max(7.0, width), 0.75 * height + 0.4)
    axis = figure.subplots()
    for name, place in places.items():
        _draw_box(axis, graph, name, place)
    for side in (1, -1):
        here = [edge for edge in edges if (places[edge[0]] - places[edge[1]]) * side > 0]
        ends = _arrow_ends(here, places)
        for reader, other in here:
            _draw_arrow(axis, side, ends[reader, other], ends[other, reader], _responds(graph, reader, other))
    axis.plot([], [], color=READS, label="reads")
    axis.plot([], [], color=RESPONDS, label=f"reads; the hypergradient of {graph.top} passes backwards here")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9, ncols=2)
    axis.set_xlim(-width / 2, width / 2)
    axis.set_ylim(-BOX_HEIGHT / 2 - 0.2, height - BOX_HEIGHT / 2 - 0.2)
    axis.set_axis_off()
    save_figure(figure, path)


def _responds(graph: Graph, reader: str, other: str) -> bool:
    """Whether the top level's hypergradient uses that ``reader`` reads ``other``."""
    passes = graph.passes(graph.top)
    return reader in (*passes, graph.top) and other in (*passes, graph.top)


def _draw_box(axis: Axes, graph: Graph, name: str, place: float) -> None:
    problem = graph.problems[name]
    count = sum(parameter.numel() for parameter in problem.variables().values())
    often = "top level" if name == graph.top else f"{problem.steps} update{'s' * (problem.steps > 1)} per update above"
    solver = next((label for label, kind in SOLVERS.items() if type(problem.solver) is kind), "")
    below = name in graph.passes(graph.top)
    detail = f"{count:,} parameters, {often}" + (f"\nsolver {solver}" if below else "")
    corner = (-BOX_WIDTH / 2, place - BOX_HEIGHT / 2)
    style = "round,pad=0.02,rounding_size=0.12"
    axis.add_patch(
        FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, boxstyle=style, facecolor="#eaf1f8", edgecolor="#1f5f99")
    )
    axis.text(0, place + 0.26, name, ha="center", va="center", fontsize=12, weight="bold")
    axis.text(0, place - 0.17, detail, ha="center", va="center", fontsize=8.5)


def _bulge(distance: float) -> float:
    """The sideways bulge of an arrow that spans a distance."""
    return 0.45 + 0.5 * (distance / SPACING - 1)


def _arrow_ends(edges: list[tuple[str, str]], places: dict[str, float]) -> dict[tuple[str, str], float]:
    """The height at which each arrow of one side touches its box: ``{(level, other end): height}``.

    The ends are spread over the box so that arrows to one level nest: from the top down, first arrows from above,
    shortest first, then arrows from below, longest first.
    """
    ends = {}
    for name, place in places.items():
        others = [reader if other == name else other for reader, other in edges if name in (reader, other)]
        above = sorted(places[one] - place for one in others if places[one] > place)
        below = sorted(places[one] - place for one in others if places[one] < place)
        named = {places[one] - place: one for one in others}
        for index, distance in enumerate(above + below, start=1):
            ends[name, named[distance]] = place + BOX_HEIGHT * (0.5 - index / (len(others) + 1))
    return ends


def _draw_arrow(axis: Axes, side: int, start: float, end: float, responds: bool) -> None:
    """An arrow on one side of the boxes (1 right, -1 left), from one height to another."""
    x = side * (BOX_WIDTH / 2 + 0.03)
    distance = abs(end - start)
    axis.add_patch(
        FancyArrowPatch(
            (x, start),
            (x, end),
            # an arc's control point lies rad * distance off the line, the arc itself half as far
            connectionstyle=f"arc3,rad={-2 * _bulge(distance) / distance}",
            arrowstyle="-|>",
            mutation_scale=15,
            linewidth=1.6,
            shrinkA=0,
            shrinkB=0,
            color=RESPONDS if responds else READS,
        )
    )
