"""Draws the levels of a graph, which reads which, and the path of the top level's hypergradient."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from multilevel.problems import Graph
from multilevel.recipes.pictures.figures import BLUE, INK, VERMILLION, new_figure, save_figure, styled
from multilevel.solvers import SOLVERS

BOX_WIDTH, BOX_HEIGHT, SPACING = 4.4, 1.0, 2.0
READS, RESPONDS = INK, VERMILLION


@styled
def draw_graph(picture: Path | BinaryIO, graph: Graph) -> None:
    """Draw the levels as boxes, top level first, and an arrow from each level to each level that it reads.

    Arrows go down on the right and up on the left; long ones go around short ones.

    Args:
        picture: the PNG to write.
        graph: the levels.
    """
    count = len(graph.names)
    positions = {name: index * SPACING for index, name in enumerate(graph.names)}
    edges = [(reader, target) for reader, targets in graph.reads.items() for target in targets]
    margin = 0.3 + max((_bulge(abs(positions[reader] - positions[target])) for reader, target in edges), default=0.0)
    width, height = BOX_WIDTH + 2 * margin, (count - 1) * SPACING + BOX_HEIGHT + 0.4
    figure = new_figure(max(7.0, width), 0.75 * height + 0.4)
    axis = figure.subplots()
    for name, position in positions.items():
        _draw_box(axis, graph, name, position)
    # the hypergradient passes where one of these reads another
    responding = {*graph.passes(graph.top), graph.top}
    for side in (1, -1):
        arrows = [edge for edge in edges if (positions[edge[0]] - positions[edge[1]]) * side > 0]
        ends = _arrow_ends(arrows, positions)
        for reader, target in arrows:
            _draw_arrow(axis, side, ends[reader, target], ends[target, reader], responding >= {reader, target})
    axis.plot([], [], color=READS, label="reads")
    axis.plot([], [], color=RESPONDS, label=f"reads; the hypergradient of {graph.top} passes backwards here")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    axis.set_xlim(-width / 2, width / 2)
    axis.set_ylim(-BOX_HEIGHT / 2 - 0.2, height - BOX_HEIGHT / 2 - 0.2)
    axis.set_axis_off()
    save_figure(figure, picture)


def _draw_box(axis: Axes, graph: Graph, name: str, position: float) -> None:
    problem = graph.problems[name]
    count = sum(parameter.numel() for parameter in problem.variables().values())
    often = "top level" if name == graph.top else f"{problem.steps} update{'s' * (problem.steps > 1)} per update above"
    solver = next((label for label, kind in SOLVERS.items() if type(problem.solver) is kind), "")
    below = name in graph.passes(graph.top)
    detail = f"{count:,} parameters, {often}" + (f"\nsolver {solver}" if below else "")
    corner = (-BOX_WIDTH / 2, position - BOX_HEIGHT / 2)
    style = "round,pad=0.02,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, boxstyle=style, facecolor="#eaf1f8", edgecolor=BLUE))
    axis.text(0, position + 0.26, name, ha="center", va="center", fontsize=12, weight="bold")
    axis.text(0, position - 0.17, detail, ha="center", va="center", fontsize=9)


def _bulge(distance: float) -> float:
    """The sideways bulge of an arrow that spans a distance."""
    return 0.45 + 0.5 * (distance / SPACING - 1)


def _arrow_ends(edges: list[tuple[str, str]], positions: dict[str, float]) -> dict[tuple[str, str], float]:
    """The height at which each arrow of one side touches its box: ``{(level, other end): height}``.

    The ends are spread over the box so that arrows to one level nest: from the top down, first arrows from above,
    shortest first, then arrows from below, longest first.
    """
    ends = {}
    for name, position in positions.items():
        neighbours = [reader if target == name else target for reader, target in edges if name in (reader, target)]
        distances = {neighbour: positions[neighbour] - position for neighbour in neighbours}
        ordered = sorted(neighbours, key=lambda neighbour: (distances[neighbour] < 0, distances[neighbour]))
        for index, neighbour in enumerate(ordered, start=1):
            ends[name, neighbour] = position + BOX_HEIGHT * (0.5 - index / (len(neighbours) + 1))
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
