"""Mutated pictures, tables, settings and extreme values."""

from __future__ import annotations

import random
from collections.abc import Iterator

from trials import extremes, mutated_pictures, overrides, tables
from trials.base import Named, kind


@kind("mutated image files; parquet files; overrides; extreme values")
def trials(random: random.Random) -> Iterator[Named]:
    yield from mutated_pictures.trials(random)
    yield from tables.trials(random)
    yield from overrides.trials(random)
    yield from extremes.trials(random)
