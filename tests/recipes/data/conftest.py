"""Tiny sets for the tests: every image is of one colour that tells which image it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from multilevel.recipes.data import DataSettings

SIZE = 8


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` writes out of the user's own cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def settings() -> Callable[..., DataSettings]:
    def make(**changes: Any) -> DataSettings:
        usual = {"name": "tiny", "image_size": SIZE, "channels": 3, "patch_size": 2, "batch_size": 4}
        return DataSettings(**{**usual, **changes})

    return make


@pytest.fixture
def picture() -> Callable[[int], Image.Image]:
    """Image number ``n`` (below 2**16) is of the colour ``(n % 256, n // 256, 9)``."""

    def make(number: int) -> Image.Image:
        return Image.new("RGB", (SIZE, SIZE), (number % 256, number // 256, 9))

    return make


@pytest.fixture
def parquet(tmp_path: Path, picture: Callable[[int], Image.Image]) -> Callable[..., Path]:
    """Write a split: ``parquet("train-0", [0, 1, 0])`` is a file of three images, numbered from ``first``."""

    def write(
        file: str,
        labels: list[Any],
        first: int = 0,
        image: str = "image",
        label: str = "label",
        kind: Any = None,
        extra: dict[str, tuple[Any, list[Any]]] | None = None,
    ) -> Path:
        if kind is None:
            kind = datasets.ClassLabel(names=["ant", "bee", "cow"])
        extra = extra or {}
        columns = {name: values for name, (_, values) in extra.items()}
        kinds = {name: feature for name, (feature, _) in extra.items()}
        columns |= {image: [picture(first + row) for row in range(len(labels))], label: labels}
        kinds |= {image: datasets.Image(), label: kind}
        folder = tmp_path / "table"
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(str(folder / f"{file}.parquet"))
        return folder

    return write


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[[int], Image.Image]) -> Callable[..., Path]:
    """Write images: ``folder(["ant/1.png", "loose.png"])``, numbered in that order from ``first``."""

    def write(files: list[str], first: int = 0) -> Path:
        root = tmp_path / "images"
        for number, file in enumerate(files):
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(first + number).save(path)
        return root

    return write


@pytest.fixture
def numbers() -> Callable[..., list[int]]:
    """Which images a part holds, told from the pixels alone."""

    def tell(part: Any) -> list[int]:
        import torch

        pixels = part.pixels(torch.arange(len(part))).numpy().astype(np.int64)
        return [int(image[0, 0, 0] + 256 * image[1, 0, 0]) for image in pixels]

    return tell
