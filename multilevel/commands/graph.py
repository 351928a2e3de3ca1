"""multilevel graph [SETTING=VALUE ...]: the levels of a recipe and who reads whom, with a picture

Prints the levels of a recipe, who reads whom and what each hypergradient goes through, and draws them
(output=FILE.png, by default graph.png). Settings are those of multilevel train.

  multilevel graph recipe=guided_mae paths=direct
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multilevel.commands.graph_picture import draw_graph
from multilevel.configuration.composition import build_recipe, compose_config


def main(arguments: Sequence[str]) -> int:
    """Print a recipe's levels and who reads whom, and draw them."""
    config = compose_config(arguments)
    path = Path(config.output or "graph.png")
    graph = build_recipe(config).graph
    print(graph.describe())
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_graph(path, graph)
    print(path)
    return 0
