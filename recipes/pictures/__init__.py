"""Pictures of a recipe's results, such as masks and reconstructions."""

from multilevel.recipes.pictures.masks import draw_masks, reconstruct_pixels

__all__ = ["draw_masks", "reconstruct_pixels"]
