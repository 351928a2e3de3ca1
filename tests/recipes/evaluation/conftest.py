"""The digits, and what an evaluation of them takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from multilevel.levels.tasks import TASKS, TaskData
from multilevel.recipes.data import DataSettings, ImageData, load_data
from multilevel.recipes.evaluation import Setup


@pytest.fixture(scope="session")
def digits() -> ImageData:
    settings = DataSettings(name="digits", image_size=8, channels=1, patch_size=2, batch_size=64, validation_share=0.1)
    return load_data(settings)


@pytest.fixture(scope="session")
def setup(digits: ImageData) -> Callable[..., Setup]:
    """A setup for the digits; ``setup(data)`` for another set."""

    def make(data: ImageData = digits, **others: Any) -> Setup:
        counts = tuple(torch.bincount(data.train.labels).tolist())
        task = TASKS["classification"](TaskData(data.class_names, counts, data.image_size, 2))
        return replace(Setup(data, task, torch.device("cpu")), **others)

    return make
