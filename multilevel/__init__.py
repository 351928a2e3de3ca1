"""multilevel: multilevel optimization in PyTorch, bilevel and deeper."""

from multilevel.problems import Callback, Engine, Graph, Problem, score_function

__all__ = ["Callback", "Engine", "Graph", "Problem", "score_function"]
