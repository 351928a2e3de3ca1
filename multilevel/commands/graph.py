"""multilevel graph [SETTING=VALUE ...]: print and draw the levels of a recipe and which reads which

Prints the levels of a recipe, which level reads which, and the levels that each hypergradient passes through; draws
them (output=FILE.png, by default graph.png). Settings are those of multilevel train.

  multilevel graph recipe=guided_mae paths=direct
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from multilevel.commands.graph_picture import draw_graph
from multilevel.commands.outputs import Outputs
from multilevel.configuration.composition import build_recipe, compose_config


def main(arguments: Sequence[str]) -> int:
    """Print and draw a recipe's levels and which reads which."""
    config = compose_config(arguments)
    outputs = Outputs.of(str(config.output or "graph.png"))
    graph = build_recipe(config).graph
    picture = io.BytesIO()
    draw_graph(picture, graph)
    outputs.print(graph.describe())
    outputs.write(picture.getvalue())
    outputs.print_paths()
    return 0
