"""Cuts large pictures into overlapping tiles, and joins a model's answers for tiles to answers for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import log_softmax

from multilevel.recipes.data.pictures import SIDEWAYS, orientation, to_colours, to_pixels, upright
from multilevel.recipes.data.pixel_range import PixelRange

OVERLAP = "a quarter"  # of a tile, at least, between neighbours

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut into tiles.

    With ``fit="crop"`` tiles are squares, ``count`` of them along the shorter side of a picture and as many along the
    longer side as cover it. With ``fit="stretch"`` there are ``count`` along either side, with the picture's ratio of
    sides. Neighbours overlap by a quarter of a tile or more, and every pixel is in at least one tile.

    Args:
        count: tiles along the shorter side.
        fit: crop or stretch, see ``to_square``.
        good: the class of pictures without a defect; None without classes.
    """

    count: int
    fit: str
    good: str | None

    @classmethod
    def stored(cls, values: dict[str, Any] | None, fit: str) -> Tiling | None:
        """The tiling of ``preprocessor_config.json``, see ``to_store``; None without one."""
        return None if values is None else cls(int(values["count"]), fit, values["good"])

    def to_store(self) -> dict[str, Any]:
        """Everything but ``fit``, as JSON."""
        return {"count": self.count, "good": self.good}

    def describe(self) -> str:
        """The rule in words."""
        of_side = "the shorter side" if self.fit == "crop" else "each side"
        tiles = f"Every image is cut into tiles, {self.count} along {of_side}, which overlap by {OVERLAP}."
        if self.good is None:
            return f"{tiles} Its features are the mean of its tiles'."
        return f"{tiles} Its label and probabilities are those of the tile that is least likely to be `{self.good}`."

    def boxes(self, width: int, height: int) -> list[Box]:
        """The tiles of a picture, row by row: left, top, right and bottom, in pixels.

        >>> Tiling(2, "crop", None).boxes(10, 7)
        [(0, 0, 4, 4), (3, 0, 7, 4), (6, 0, 10, 4), (0, 3, 4, 7), (3, 3, 7, 7), (6, 3, 10, 7)]
        """
        if self.fit == "crop":
            across = down = _side(min(width, height), self.count)
        else:
            across, down = _side(width, self.count), _side(height, self.count)
        lefts, tops = self._starts(width, across), self._starts(height, down)
        return [(left, top, left + across, top + down) for top in tops for left in lefts]

    def _starts(self, length: int, side: int) -> list[int]:
        # neighbours start at most 3/4 of a tile apart
        count = max(1 - (-4 * (length - side)) // (3 * side), self.count)
        return np.linspace(0, length - side, count).round().astype(int).tolist()

    def cut(self, picture: Image.Image) -> list[Image.Image]:
        """The tiles of an upright picture."""
        return [picture.crop(box) for box in self.boxes(*picture.size)]


def _side(length: int, count: int) -> int:
    """The least side with which ``count`` tiles that overlap by a quarter cover a length: length / (1 + 3/4 (count -
    1)), rounded up."""
    return -(-4 * length // (3 * count + 1))


def tile_pixels(
    picture: Image.Image,
    tiling: Tiling | None,
    image_size: int,
    channels: int,
    fit: str = "crop",
    pixel_range: PixelRange | None = None,
) -> np.ndarray:
    """The tiles of a picture, or the picture itself without a tiling, as a model reads them; see ``to_pixels``.

    Returns:
        uint8 array ``[tiles, channels, image_size, image_size]``.
    """
    if tiling is None:
        return to_pixels(picture, image_size, channels, fit, pixel_range)[None]
    tiles = tiling.cut(to_colours(upright(picture), channels, pixel_range))
    return np.stack([to_pixels(tile, image_size, channels, fit) for tile in tiles])


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a picture with its orientation tag applied."""
    width, height = picture.size
    return (height, width) if orientation(picture) in SIDEWAYS else (width, height)


@dataclass(frozen=True)
class Pictures:
    """The pictures that images come from: with ``data.tiles`` those they were cut out of, otherwise the images
    themselves.

    Everything that counts, scores or labels pictures goes through this class.

    Attributes:
        numbers: int64 ``[N]``, the picture of each image, from 0 to P - 1.
        rows: int64 ``[P]``, of the pictures in their source.
        labels: int64 ``[P]``, of the pictures.
        good: number of the good class; ``None``: no image is a tile, or there are no classes.
    """

    numbers: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    good: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: np.ndarray) -> Pictures:
        """The pictures of the images at ``positions`` (int64 ``[M]``), renumbered."""
        if self.good is None:
            return Pictures(np.arange(len(positions)), self.rows[positions], self.labels[positions])
        chosen, numbers = np.unique(self.numbers[positions], return_inverse=True)
        return Pictures(numbers, self.rows[chosen], self.labels[chosen], self.good)

    @classmethod
    def of_tiles(cls, tiles: Sequence[int], good: int | None) -> Pictures:
        """Pictures without labels, each with so many tiles, one picture's after the other's."""
        every = np.arange(len(tiles))
        return cls(np.repeat(every, tiles), every, np.full(len(tiles), -1), good)

    @property
    def firsts(self) -> np.ndarray:
        """The position of the first image of each picture, int64 ``[P]``."""
        return np.unique(self.numbers, return_index=True)[1]

    def positions(self, chosen: np.ndarray) -> np.ndarray:
        """The positions of all images of the pictures ``chosen`` (int64), sorted."""
        return np.flatnonzero(np.isin(self.numbers, chosen))

    def worst(self, scores: np.ndarray) -> np.ndarray:
        """The tile that stands for each picture: the one that is least likely to be good; of equals the first.

        Args:
            scores: float ``[N, classes]``, probabilities, or their logarithms.

        Returns:
            Positions int64 ``[P]``; every image without tiles.

        >>> pictures = Pictures.of_tiles([2, 1], good=0)
        >>> pictures.worst(np.array([[0.9, 0.1], [0.3, 0.7], [0.8, 0.2]])).tolist()
        [1, 2]
        """
        if self.good is None:
            return np.arange(len(self.numbers))
        order = np.lexsort((scores[:, self.good], self.numbers))
        return order[np.unique(self.numbers[order], return_index=True)[1]]

    def predictions(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 ``[P]`` of the pictures, and their probabilities ``[P, classes]`` from those of the images."""
        return self.labels, probabilities[self.worst(probabilities)]

    def join(self, features: np.ndarray, logits: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Features ``[N, width]`` and logits ``[N, classes]`` of images to those of pictures, ``[P, ...]``.

        They are those of the worst tile; without logits, the features are the mean of the tiles'.
        """
        if logits is None:
            sums = np.zeros((len(self), features.shape[1]))
            np.add.at(sums, self.numbers, features)
            counts = np.bincount(self.numbers, minlength=len(self))
            return (sums / counts[:, None]).astype(features.dtype), None
        rows = self.worst(log_softmax(logits.astype(np.float64), axis=1))
        return features[rows], logits[rows]
