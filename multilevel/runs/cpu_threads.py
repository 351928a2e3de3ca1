"""Number of CPU threads per operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from multilevel.recipes.base import Recipe


@contextmanager
def cpu_threads(recipe: Recipe) -> Iterator[None]:
    """Within the block, use as many threads as the setting ``threads`` says. If that is unset: one if that suits the
    recipe, else torch's default, which is one per core or ``OMP_NUM_THREADS``."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.settings.threads or (1 if recipe.one_thread else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
