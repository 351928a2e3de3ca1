"""Measures what a camera, a lens or a lamp changes in a picture, at the resolution of its file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from multilevel.recipes.data.groups import components, correlated, unit_vectors
from multilevel.recipes.data.pictures import to_colours, upright
from multilevel.recipes.data.pixel_range import PixelRange

#: The measures of ``measure_optics``, in its order, with their units.
MEASURES = {
    "sharpness": "cycles per pixel",
    "sharpness at 256 pixels": "cycles per pixel",
    "brightness": "grey levels",
    "contrast": "grey levels",
    "noise": "grey levels",
    "width": "pixels",
    "height": "pixels",
}
FIXED_SIZE = 256  # of the shorter side
THUMBNAIL = 32
NEAR_COPY = 0.95


@dataclass(frozen=True)
class Optics:
    """The optics of pictures.

    Attributes:
        measures: float32 [N, 7], see ``measure_optics``.
        thumbnails: uint8 [N, 1024], grey pictures of 32 x 32 pixels, by which near copies are found.
    """

    measures: np.ndarray
    thumbnails: np.ndarray

    @classmethod
    def of(cls, picture: Image.Image, pixel_range: PixelRange | None = None) -> Optics:
        """The optics of one picture, as Pillow has opened it; for ``pixel_range`` see ``to_pixels``."""
        grey = to_colours(upright(picture), 1, pixel_range)
        return cls(measure_optics(grey)[None], thumbnail(grey)[None])

    @classmethod
    def joined(cls, parts: Sequence[Optics]) -> Optics:
        """The optics of all pictures of ``parts``, in their order."""
        return cls(
            np.concatenate([part.measures for part in parts]), np.concatenate([part.thumbnails for part in parts])
        )


def measure_optics(picture: Image.Image) -> np.ndarray:
    """Measure a picture upright, in grey, before any resizing.

    - Sharpness is the root mean square spatial frequency: that of the gradient divided by the standard deviation, and
      by 2 pi. It depends neither on brightness nor on contrast, and any blur lowers it. At the resolution of the file
      it shows a picture that was scaled down and up again; with the shorter side reduced to 256 pixels (a smaller
      picture stays as it is) it shows a lens out of focus behind the noise of the sensor.
    - Brightness is the mean, contrast the standard deviation, from 0 to 255.
    - Noise is the standard deviation of white noise as Immerkaer (1996) estimates it, from the mean absolute value of a
      mask that no plane and no edge along an axis passes.

    Args:
        picture: any picture that Pillow has opened.

    Returns:
        float32 [7], in the order of ``MEASURES``.

    >>> measure_optics(Image.new("L", (40, 30), 128)).tolist()
    [0.0, 0.0, 128.0, 0.0, 0.0, 40.0, 30.0]
    """
    grey = to_colours(upright(picture), 1)
    values = np.asarray(grey, np.float32)
    ratio = FIXED_SIZE / min(grey.size)
    reduced = (
        grey if ratio >= 1 else grey.resize([max(1, round(side * ratio)) for side in grey.size], Image.Resampling.BOX)
    )
    mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    sharpness = [spatial_frequency(values), spatial_frequency(np.asarray(reduced, np.float32))]
    return np.array([*sharpness, mean, deviation, noise(values), *grey.size], np.float32)


def spatial_frequency(values: np.ndarray) -> float:
    """The root mean square frequency of a picture float32 [H, W], in cycles per pixel; 0 if it is constant."""
    variance = values.var(dtype=np.float64)
    slopes = [np.square(np.diff(values, axis=axis)).mean(dtype=np.float64) for axis in (0, 1) if values.shape[axis] > 1]
    return math.sqrt(sum(slopes) / variance) / (2 * math.pi) if variance > 0 else 0.0


def noise(values: np.ndarray) -> float:
    """The standard deviation of the noise in a picture float32 [H, W] (Immerkaer 1996, equation 6); 0 if it has fewer
    than 3 rows or columns."""
    if min(values.shape) < 3:
        return 0.0
    residuals = np.diff(np.diff(values, 2, axis=0), 2, axis=1)  # the mask (1, -2, 1; -2, 4, -2; 1, -2, 1)
    return math.sqrt(math.pi / 2) / 6 * float(np.abs(residuals).mean(dtype=np.float64))


def thumbnail(picture: Image.Image) -> np.ndarray:
    """The whole picture in grey at 32 x 32 pixels, uint8 [1024]."""
    grey = to_colours(upright(picture), 1)
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel()


def near_copies(thumbnails: np.ndarray, correlation: float = NEAR_COPY) -> np.ndarray:
    """Group pictures that show one part: connected by pairs of near copies.

    Args:
        thumbnails: uint8 [N, P].
        correlation: pictures whose values correlate more than this are near copies.

    Returns:
        int64 [N], equal numbers for one group; a constant picture is its own group.

    >>> near_copies(np.array([[0, 1, 2], [5, 0, 7], [10, 20, 31]], np.uint8)).tolist()
    [0, 1, 0]
    """
    vectors = unit_vectors(thumbnails.astype(np.float32))
    return components([correlated(vectors, correlation)], len(vectors))
