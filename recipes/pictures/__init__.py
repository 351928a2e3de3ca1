"""Pictures of a run: losses over time, masks and reconstructions, the graph of levels, drift."""

from multilevel.recipes.pictures.comparison import draw_comparison
from multilevel.recipes.pictures.curves import draw_curves
from multilevel.recipes.pictures.drift import draw_drift
from multilevel.recipes.pictures.graph import draw_graph
from multilevel.recipes.pictures.masks import draw_masks, reconstruct_pixels

__all__ = ["draw_comparison", "draw_curves", "draw_drift", "draw_graph", "draw_masks", "reconstruct_pixels"]
