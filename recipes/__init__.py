"""Recipes, one file each: a recipe wires levels into a graph."""

from multilevel.solvers.extensions import extend

# No recipe is imported here: the command line lists recipes and completes settings without loading any.
extend(__path__, __name__)
