"""The levels of a graph, who reads whom, and what the top level's hypergradient goes through."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from multilevel.problems import Graph
from multilevel.recipes.pictures.figures import new_figure, save_figure
from multilevel.solvers import SOLVERS

BOX_WIDTH, BOX_HEIGHT = 4.4, 1.0
READS, RESPONDS = "#4a4a4a", "#c0392b"


def draw_graph(path: Path, graph: Graph) -> None:
    """Draw the levels as boxes, the top level on top, and an arrow from each level to each one it reads.

    Args:
        path: the PNG to write.
        graph: the levels.
    """
    count = len(graph.names)
    height = 2.0 * count
    figure = new_figure(8.0, 0.75 * height + 0.4)
    axis = figure.subplots()
    places = {name: 2.0 * index + BOX_HEIGHT / 2 for index, name in enumerate(graph.names)}
    for name, place in places.items():
        _draw_box(axis, graph, name, place)
    for reader, others in graph.reads.items():
        for other in others:
            _draw_arrow(axis, places[reader], places[other], _responds(graph, reader, other))
    axis.plot([], [], color=READS, label="reads")
    axis.plot([], [], color=RESPONDS, label=f"reads; the hypergradient of {graph.top} passes here, backwards")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9, ncols=2)
    axis.set_xlim(-BOX_WIDTH / 2 - 2.4, BOX_WIDTH / 2 + 2.4)
    axis.set_ylim(-0.3, height - 0.7)
    axis.set_axis_off()
    save_figure(figure, path)


def _responds(graph: Graph, reader: str, other: str) -> bool:
    """Whether the top level's hypergradient uses that ``reader`` reads ``other``."""
    passes = graph.passes(graph.top)
    return reader in (*passes, graph.top) and other in (*passes, graph.top)


def _draw_box(axis: Axes, graph: Graph, name: str, place: float) -> None:
    problem = graph.problems[name]
    count = sum(parameter.numel() for parameter in problem.variables().values())
    often = "top level" if name == graph.top else f"{problem.steps} updates for each one above"
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


def _draw_arrow(axis: Axes, start: float, end: float, responds: bool) -> None:
    """Downwards on the right, upwards on the left, curved wide enough to go around the levels between."""
    side = 1 if end < start else -1
    distance = abs(end - start) / 2.0
    x = side * (BOX_WIDTH / 2 + 0.03)
    bend = -0.45 - 0.12 * (distance - 1) if distance > 1 else -0.35
    shift = 0.12 * side
    axis.add_patch(
        FancyArrowPatch(
            (x, start - shift),
            (x, end + shift),
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>",
            mutation_scale=15,
            linewidth=1.6,
            color=RESPONDS if responds else READS,
        )
    )
