"""Recipes, one file each: a recipe wires levels into a graph."""

# Nothing is imported here: the command line lists recipes and completes settings without loading any.
