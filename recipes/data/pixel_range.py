"""The values that are black and white in images of more than 8 bits, chosen for a whole set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

Limits = tuple[float, float]

FULL_SCALES = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14 and 16 bits
OVERSHOOT, FLOAT_OVERSHOOT = 0.1, 0.05  # of resampled floating-point values beyond 0 to 1, and beyond other scales
FILLED = 0.5  # least share of a full scale that a set's largest value reaches; other sets end at their largest value
KINDS = {"integers": "integers of 16 bits or more", "floats": "floating-point numbers"}
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339  # tags of TIFF files


@dataclass(frozen=True)
class PixelRange:
    """Values that are black and white; ``None`` for a kind of pixels that the set does not have.

    Attributes:
        integers: of grey images of 16 or 32 bits.
        floats: of floating-point images.
        earlier: the rule of earlier versions instead: integers from 0 to 65535, floating point from 0 to 1 if no value
            of a picture is larger, otherwise to 255.
    """

    integers: Limits | None = None
    floats: Limits | None = None
    earlier: bool = False

    def limits(self, kind: str, values: np.ndarray) -> Limits:
        """The values that are black and white in a picture.

        Args:
            kind: integers or floats.
            values: its pixels.

        Raises:
            ValueError: the set has no such images.
        """
        if self.earlier:
            return (0, 65535) if kind == "integers" else (0, 1) if values.max() <= 1 else (0, 255)
        limits = self.integers if kind == "integers" else self.floats
        if limits is None:
            raise ValueError(
                f"its pixels are {KINDS[kind]} and no training image that was read has such: convert it as the "
                "training images were, or train with data.pixel_range=[LOW,HIGH]"
            )
        return limits

    @classmethod
    def stored(cls, values: dict[str, Sequence[float] | None] | None) -> PixelRange:
        """The range of a record or an export, see ``to_store``; that of earlier versions from ``None``."""
        if values is None:
            return EARLIER
        pairs = {kind: None if limits is None else (limits[0], limits[1]) for kind, limits in values.items()}
        return cls(pairs["integers"], pairs["floats"])

    def to_store(self) -> dict[str, Limits | None] | None:
        """The limits as JSON; ``None`` for the rule of earlier versions.

        >>> PixelRange(integers=(0, 4095)).to_store()
        {'integers': (0, 4095), 'floats': None}
        """
        return None if self.earlier else {kind: limits for kind, limits in asdict(self).items() if kind in KINDS}

    @classmethod
    def fitting(cls, extremes: Iterable[Extremes]) -> PixelRange:
        """The range for images with these extremes: the full scale of 8 to 16 bits, or 0 to 1 for floating point, that
        their largest value reaches half of; otherwise from 0, or the least value below it, to the largest value.

        >>> PixelRange.fitting([Extremes("integers", 12, 700), Extremes("integers", 9, 3900)])
        PixelRange(integers=(0, 4095), floats=None, earlier=False)
        >>> PixelRange.fitting([Extremes("floats", -40.0, 30.0)]).floats
        (-40.0, 30.0)
        """
        of_set = list(extremes)
        ranges: dict[str, Limits] = {}
        for kind in dict.fromkeys(of_picture.kind for of_picture in of_set):
            low = min(of_picture.low for of_picture in of_set if of_picture.kind == kind)
            high = max(of_picture.high for of_picture in of_set if of_picture.kind == kind)
            ranges[kind] = _fitting(low, high, kind)
        return cls(ranges.get("integers"), ranges.get("floats"))


EARLIER, EIGHT_BITS = PixelRange(earlier=True), PixelRange()


class Extremes(NamedTuple):
    """The kind of a picture's pixels, their least and largest finite value, and whether some are NaN."""

    kind: str
    low: float
    high: float
    gaps: bool = False

    @classmethod
    def of(cls, picture: Image.Image) -> Extremes | None:
        """Read a picture; ``None`` if its pixels have 8 bits."""
        kind = kind_of(picture)
        if kind is None:
            return None
        values = raw_values(picture)
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return cls(kind, low, high, bool(np.isnan(values).any()))


def kind_of(picture: Image.Image) -> str | None:
    """``integers`` or ``floats`` for more than 8 bits; nothing is decoded."""
    return "floats" if picture.mode == "F" else "integers" if picture.mode.startswith("I") else None


def raw_values(picture: Image.Image) -> np.ndarray:
    """The values of a grey picture, float64 ``[H, W]``."""
    values = np.asarray(picture).astype(np.float64)
    tags = getattr(picture, "tag_v2", {})
    if tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        values[values < 0] += 2.0**32  # Pillow reads unsigned numbers as signed ones
    return values


def white_is_zero(picture: Image.Image) -> bool:
    """Whether a TIFF file says that its least value is white; Pillow turns such values around only if they have at most
    8 bits."""
    return getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def eight_bits(picture: Image.Image, pixel_range: PixelRange | None) -> Image.Image:
    """Convert a picture of more than 8 bits to mode ``L``.

    NaN becomes black, values beyond the range black or white, transparent ones white.

    Args:
        picture: as Pillow has opened it.
        pixel_range: ``None``: the range for a set of this picture.

    Raises:
        ValueError: the range has no limits for such pixels.
    """
    kind = kind_of(picture)
    assert kind is not None
    values = raw_values(picture)
    if pixel_range is None:
        own = Extremes.of(picture)
        assert own is not None
        pixel_range = PixelRange.fitting([own])
    low, high = pixel_range.limits(kind, values)
    scaled = (values - low) / (high - low) * 255
    if not pixel_range.earlier:
        scaled = 255 - scaled if white_is_zero(picture) else scaled
        scaled[values == picture.info.get("transparency")] = 255
    scaled = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0)
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _fitting(low: float, high: float, kind: str) -> Limits:
    scales = FULL_SCALES if kind == "integers" else (1, *FULL_SCALES)
    for scale in scales:
        overshoot = 0.0 if kind == "integers" else scale * (OVERSHOOT if scale == 1 else FLOAT_OVERSHOOT)
        if low >= -overshoot and FILLED * scale <= high <= scale + overshoot:
            return 0, scale
    if high <= 0 <= low:
        return 0, 255  # all black
    return (min(low, 0), high) if high > 0 else (low, 0)
