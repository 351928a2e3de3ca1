"""The digits, and what an evaluation of them takes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from multilevel.levels.tasks import TASKS, TaskData
from multilevel.recipes.data import DataSettings, ImageData, load_data
from multilevel.recipes.evaluation import Setup


@cache
def digits() -> ImageData:
    settings = DataSettings(name="digits", image_size=8, channels=1, patch_size=2, batch_size=64, validation_share=0.1)
    settings.near_copies = "keep"  # as in data=digits
    return load_data(settings)


def setup(data: ImageData | None = None, **others: Any) -> Setup:
    """A setup for the digits; ``setup(data)`` for another set."""
    data = data or digits()
    counts = tuple(torch.bincount(data.train.labels).tolist())
    task = TASKS["classification"](TaskData(data.class_names, counts, data.image_size, 2))
    return replace(Setup(data, task, torch.device("cpu")), **others)
