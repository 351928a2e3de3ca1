"""Image data for every recipe: reads data sets, splits them without leaks, and serves batches."""

from multilevel.recipes.data.images import Images
from multilevel.recipes.data.loader import ImageLoader
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.splits import ImageData, Split, load_data

__all__ = ["DataSettings", "ImageData", "ImageLoader", "Images", "Split", "load_data"]
