"""Image sets for every recipe: read, divided into parts that do not leak, and served in batches."""

from multilevel.recipes.data.images import Images
from multilevel.recipes.data.loader import ImageLoader
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.splits import ImageData, Split, load_data

__all__ = ["DataSettings", "ImageData", "ImageLoader", "Images", "Split", "load_data"]
