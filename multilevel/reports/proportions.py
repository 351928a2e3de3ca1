"""Shares of images with exact intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scipy.stats import beta

CONFIDENCE = 0.95


class Rate(NamedTuple):
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Proportion:
    """A count among images, with its exact two-sided 95% interval.

    Clopper and Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of the binomial". The
    images count as independent: photographs of one part make the true interval wider.

    Attributes:
        count: images that have the property.
        total: images.
        share: count / total; None without images.
        low, high: the interval; 0 and 1 without images.

    >>> proportion = Proportion.of(45, 78)
    >>> [round(number, 4) for number in (proportion.share, proportion.low, proportion.high)]
    [0.5769, 0.4598, 0.6881]
    """

    count: int
    total: int
    share: float | None
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> Proportion:
        """The proportion of ``count`` in ``total`` images."""
        tail = (1 - CONFIDENCE) / 2
        low = float(beta.ppf(tail, count, total - count + 1)) if count else 0.0
        high = float(beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
        return cls(int(count), int(total), count / total if total else None, low, high)

    @property
    def rate(self) -> Rate | None:
        """The share with its interval; None without images."""
        return None if self.share is None else Rate(self.share, self.low, self.high)
