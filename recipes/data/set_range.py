"""Chooses the range of pixel values of a set, and says which share of it the images use."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from torch import Tensor

from multilevel.recipes.data.images import Source, SourceSplits, worker_count
from multilevel.recipes.data.pixel_range import KINDS, Extremes, PixelRange
from multilevel.recipes.data.raster import bounded
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.strata import random_for

SAMPLED = 10_000  # images that are read to choose a range
NARROW = 16  # of 256 levels
CENTRAL = 0.998  # share of the pixels that is said to be within levels


def choose_range(sources: SourceSplits, settings: DataSettings) -> tuple[PixelRange, list[str]]:
    """The range of a set's images of more than 8 bits, and lines about it for the screen.

    At most 10,000 images are looked at, drawn at random.

    Args:
        sources: the training images, and the set's own test images if it has any.
        settings: ``pixel_range`` and ``split_seed`` are read.
    """
    places = [(source, row) for source in (sources.train, sources.test) if source for row in range(len(source))]
    if len(places) > SAMPLED:
        drawn = random_for(settings.split_seed, "pixel range").permutation(len(places))[:SAMPLED]
        places = [places[position] for position in np.sort(drawn)]
    Image.init()  # Pillow looks for its formats on first use, which is not safe in threads
    with ThreadPoolExecutor(worker_count(), "ranges") as pool:
        read = list(pool.map(lambda place: _extremes(*place), places))
    extremes = [of_picture for of_picture in read if of_picture is not None]
    pixel_range = PixelRange.fitting(extremes)
    if settings.pixel_range is not None:
        limits = (float(settings.pixel_range[0]), float(settings.pixel_range[1]))
        pixel_range = PixelRange(integers=limits, floats=limits)
    return pixel_range, describe_range(pixel_range, extremes)


def _extremes(source: Source, row: int) -> Extremes | None:
    try:
        with bounded(source.open(row)) as picture:
            return Extremes.of(picture)
    except Exception:  # broken: decoding will report it
        return None


def describe_range(pixel_range: PixelRange, extremes: Sequence[Extremes]) -> list[str]:
    """Lines about the range of a set for the screen."""
    lines = []
    for kind, name in KINDS.items():
        of_kind = [of_picture for of_picture in extremes if of_picture.kind == kind]
        if of_kind:
            low, high = pixel_range.limits(kind, np.zeros(1))
            least, most = min(each.low for each in of_kind), max(each.high for each in of_kind)
            lines.append(
                f"the pixels of {len(of_kind):,} images are {name}, from {least:g} to {most:g}: in all images {low:g} "
                f"is black and {high:g} is white (data.pixel_range=[LOW,HIGH] sets other values)"
            )
    gaps = sum(of_picture.gaps for of_picture in extremes)
    if gaps:
        lines.append(f"{gaps:,} images have pixels without a value (NaN), which are read as black")
    return lines


def about_narrow_range(counts: Tensor) -> list[str]:
    """A line if nearly all pixels are in a sixteenth of the range.

    Args:
        counts: int64 ``[C, 256]``, the number of pixels of each level.

    >>> about_narrow_range(torch.ones(1, 256, dtype=torch.int64))
    []
    """
    shares = counts.sum(0).double().cumsum(0) / counts.sum().clamp(min=1)
    low, high = (int((shares < tail).sum()) for tail in ((1 - CENTRAL) / 2, (1 + CENTRAL) / 2))
    if high - low >= NARROW:
        return []
    return [
        f"{CENTRAL:.1%} of the pixels have levels from {low} to {high} of 0 to 255: the images use "
        f"{(high - low + 1) / 256:.1%} of the range (of more than 8 bits, data.pixel_range=[LOW,HIGH] spreads them)"
    ]
