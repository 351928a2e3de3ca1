"""Pictures with too many pixels are refused before they are decoded, and large ones are decoded one at a time."""

from __future__ import annotations

import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multilevel.recipes.data import DataSettings, load_data, raster
from multilevel.recipes.data.raster import bounded, open_raster
from multilevel.recipes.data.sources.cells import open_cell
from multilevel.solvers import DataError


def black(width: int, height: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return io.BytesIO(file.getvalue())


@pytest.mark.parametrize(
    ("size", "sentence"),
    [((10_000, 9_001), "10,000 x 9,001 pixels are more than data.max_pixels=90,000,000 allows"), ((20_000, 9_500), "")],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_than_90_million_pixels_are_refused(size: tuple[int, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence or "data.max_pixels=90,000,000 allows")):
        open_raster(black(*size))
    with pytest.raises(ValueError, match=r"data.max_pixels=90,000,000"):
        open_cell({"bytes": black(*size).getvalue()})


def test_a_line_scan_camera_raises_the_limit() -> None:
    with open_raster(black(20_000, 9_500), max_pixels=200_000_000) as picture:
        assert picture.size == (20_000, 9_500)


def write_classes(root: Path, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for name in ("dent", "good"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(root / name / f"{number}.png")


@pytest.mark.parametrize("place", ["path", "unlabelled"])
def test_data_max_pixels_holds_for_all_images_of_a_set(tmp_path: Path, place: str) -> None:
    write_classes(tmp_path / "path", (10, 10))
    write_classes(tmp_path / "unlabelled", (10, 10))
    Image.new("L", (30, 10)).save(tmp_path / place / "dent" / "long.png")
    settings = DataSettings(
        name="folder",
        path=str(tmp_path / "path"),
        unlabelled=str(tmp_path / "unlabelled"),
        image_size=8,
        channels=1,
        patch_size=4,
        batch_size=4,
        near_copies="keep",
        max_pixels=299,
    )
    with pytest.raises(DataError, match=rf"{place}.dent.long\.png .*30 x 10 pixels are more than data\.max_pixels=299"):
        load_data(settings)
    settings.max_pixels = 300
    load_data(settings)


def test_threads_decode_one_large_picture_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "LARGE", 99)
    decoding, most, small = 0, 0, threading.Barrier(2, timeout=600)

    def decode(side: int) -> None:
        nonlocal decoding, most
        with bounded(Image.new("L", (side, side))):
            if side < 10:
                small.wait()  # passes only if two small pictures are open together
                return
            decoding += 1
            most = max(most, decoding)
            threading.Event().wait(0.02)
            decoding -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, [10] * 8))
        list(pool.map(decode, [9] * 2))
    assert most == 1
