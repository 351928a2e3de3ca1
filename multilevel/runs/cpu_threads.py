"""Number of CPU threads per operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from multilevel.recipes.base import Recipe


@contextmanager
def cpu_threads(recipe: Recipe) -> Iterator[None]:
    """Within the block, as many as ``threads`` of the settings says; where it is open, one if that suits the recipe,
    else what torch has, which is one a core or ``OMP_NUM_THREADS``."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.settings.threads or (1 if recipe.one_thread else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
