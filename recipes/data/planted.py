"""Generates images whose class is visible only in a few known patches, to test whether a masking network finds them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multilevel.recipes.data.images import Source, SourceSplits
from multilevel.solvers.errors import SettingError

CLASSES = 4
TRAIN_IMAGES, TEST_IMAGES = 5000, 1000
SEED = 0
CONTRAST, NOISE = 60.0, 40.0  # in grey values, 0 to 255: a pattern's amplitude, and the noise of each pixel
TEXTURES, IMAGES = 0, 1  # purposes of random generators


class PlantedSource(Source):
    """Grey images of textured patches. In each block of 2 x 2 patches one shows the class, three show clutter.

    An image has four hidden labels, drawn independently and uniformly: its class and three secret ones. Each has its
    own place in every block of 2 x 2 patches, which shows that place's texture for the label (half of the pixels light,
    half dark) with noise. So clutter and signal vary equally, and are equally predictable from the other patches of
    their place; only the labels tell them apart.

    Args:
        image_size: pixels per side, an even number of patches.
        patch_size: pixels per side.
        count: number of images.
        seed: seed of the images; the textures do not depend on it.

    Raises:
        SettingError: patches do not fit into blocks of 2 x 2.
    """

    def __init__(self, image_size: int, patch_size: int, count: int, seed: int) -> None:
        if image_size % (2 * patch_size):
            raise SettingError("data.image_size", image_size, f"a multiple of 2 * data.patch_size={2 * patch_size}")
        self.patch_size = patch_size
        self.seed = seed
        self.side = image_size // patch_size
        self.labels_by_place = np.random.default_rng([SEED, IMAGES, seed]).integers(CLASSES, size=(count, 4))
        signs = np.where(np.arange(patch_size**2) % 2, 1.0, -1.0)
        textures = np.random.default_rng([SEED, TEXTURES]).permuted(np.tile(signs, (4, CLASSES, 1)), axis=-1)
        self.textures = textures.reshape(4, CLASSES, patch_size, patch_size)
        self.labels = torch.from_numpy(self.labels_by_place[:, 0].copy())

    def open(self, row: int) -> Image.Image:
        places = _places(self.side).reshape(self.side, self.side)
        patches = self.textures[places, self.labels_by_place[row][places]]  # [side, side, patch, patch]
        pixels = patches.transpose(0, 2, 1, 3).reshape(self.side * self.patch_size, -1)
        noise = np.random.default_rng([SEED, IMAGES, self.seed, row]).normal(scale=NOISE, size=pixels.shape)
        return Image.fromarray((127.5 + CONTRAST * pixels + noise).clip(0, 255).round().astype(np.uint8))

    def describe_row(self, row: int) -> str:
        return f"row {row} of planted"


def signal_patches(side: int) -> Tensor:
    """Mark the patches out of ``side`` x ``side`` that show the class: bool [side * side], in row-major order."""
    return torch.from_numpy(_places(side) == 0)


def read_planted(image_size: int, patch_size: int) -> SourceSplits:
    """Generate the training and test images."""
    train, test = (
        PlantedSource(image_size, patch_size, count, seed) for seed, count in enumerate((TRAIN_IMAGES, TEST_IMAGES))
    )
    names = tuple(f"texture {number}" for number in range(CLASSES))
    return SourceSplits(train, test, names, signal_patches=signal_patches(image_size // patch_size))


def _places(side: int) -> np.ndarray:
    """The position of each patch in its block of 2 x 2: int64 [side * side], 0 to 3."""
    rows, columns = np.divmod(np.arange(side * side), side)
    return 2 * (rows % 2) + columns % 2
