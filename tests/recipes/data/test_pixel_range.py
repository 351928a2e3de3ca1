"""Images of more than 8 bits: one scale for the whole set, stored with it; compared with plain numpy."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from multilevel.recipes.data import load_data
from multilevel.recipes.data.pictures import to_pixels
from multilevel.recipes.data.pixel_range import EARLIER, PixelRange
from multilevel.recipes.data.record import DataRecord
from multilevel.recipes.export.weights import processor_settings
from multilevel.solvers.errors import DataError, SettingError

RAMP = np.tile(np.linspace(0, 1, 8), (8, 1))
EXACT = np.round(RAMP * 255)


def tiff_bytes(values, photometric=1):
    """A TIFF file of one grey picture, written by hand after TIFF 6.0: little-endian, one strip, no compression."""
    values = np.ascontiguousarray(values)
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {256: values.shape[1], 257: values.shape[0], 258: 8 * values.itemsize, 259: 1, 262: photometric}
    tags |= {273: 0, 277: 1, 278: values.shape[0], 279: len(data), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def opened(values, photometric=1):
    return Image.open(io.BytesIO(tiff_bytes(values, photometric)))


@pytest.mark.parametrize(
    ("kind", "white"),
    [
        *(("float32", white) for white in (1, 255, 1023, 4095, 16383, 65535, 700, 2_000_000)),
        *(("uint16", white) for white in (1, 255, 1023, 4095, 16383, 65535, 700)),
        *(("int32", white) for white in (255, 65535, 2_000_000)),
        *(("uint32", white) for white in (255, 65535, 3_000_000_000)),
        *(("int16", white) for white in (255, 4095, 16383)),
    ],
)
def test_ramp_from_nought_is_a_ramp(kind, white):
    values = (RAMP * white).astype(kind)
    largest = 1023 if white == 700 else values.max()
    expected = np.round(values.astype(np.float64) / largest * 255)
    assert abs(to_pixels(opened(values), 8, 1)[0] - expected).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(-1000, 1000), (-1024, 3071), (-1, 1), (-3000, -1000)])
@pytest.mark.parametrize("kind", ["int16", "int32", "float32"])
def test_signed_values_keep_their_order(low, high, kind):
    values = np.round(low + RAMP * (high - low)).astype(kind)
    top = max(high, 0)
    expected = np.round((values.astype(np.float64) - low) / (top - low) * 255)
    assert np.array_equal(to_pixels(opened(values), 8, 1)[0], expected)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_white_is_nought_where_the_file_says_so(kind, channels):
    white = 1 if kind == "float32" else np.iinfo(kind).max
    pixels = to_pixels(opened((RAMP * white).astype(kind), photometric=0), 8, channels)
    assert abs(pixels - (255 - EXACT)).max() <= 1


@pytest.mark.parametrize(
    ("odd", "expected"), [(np.nan, 0), (np.inf, 255), (-np.inf, 0), (1.001, 255), (1.09, 255), (-0.05, 0)]
)
def test_one_odd_pixel_changes_no_other(odd, expected):
    values = RAMP.astype(np.float32)
    values[3, 3] = odd
    pixels = to_pixels(opened(values), 8, 1)[0].copy()
    assert pixels[3, 3] == expected
    pixels[3, 3] = EXACT[3, 3]
    assert np.array_equal(pixels, EXACT)


def test_transparent_grey_of_sixteen_bits_is_white():
    values = (RAMP * 65535).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG", transparency=int(values[0, 2]))
    pixels = to_pixels(Image.open(stream), 8, 1)[0]
    expected = EXACT.copy()
    expected[:, 2] = 255
    assert np.array_equal(pixels, expected)


@pytest.fixture
def deep_folder(tmp_path):
    """Two classes of ten pictures of 12 bits; picture n of class k has the value 200 * n + 1000 * k everywhere."""

    def write(change=lambda values, row: values, kind="uint16"):
        for number, name in enumerate(("dark", "light")):
            (tmp_path / "deep" / name).mkdir(parents=True)
            for row in range(10):
                values = change(np.full((8, 8), 200 * row + 1000 * number, kind), 10 * number + row)
                (tmp_path / "deep" / name / f"{row}.tif").write_bytes(tiff_bytes(values))
        return tmp_path / "deep"

    return write


def means(data):
    parts = (data.train, data.test)
    return sorted(value for part in parts for value in part.pixels(torch.arange(len(part))).float().mean((1, 2, 3)))


def test_brightness_of_a_set_survives(deep_folder, settings):
    root = deep_folder()
    data = load_data(settings(path=str(root), channels=1, near_copies="keep"))
    expected = sorted(round((200 * row + 1000 * number) / 4095 * 255) for row in range(10) for number in range(2))
    assert means(data) == expected
    assert data.pixel_range == PixelRange(integers=(0, 4095))
    assert any("0 is black and 4095 is white" in note for note in data.notes)


def test_setting_goes_before_the_values_of_the_set(deep_folder, settings):
    data = load_data(settings(path=str(deep_folder()), channels=1, near_copies="keep", pixel_range=[0, 10000]))
    assert means(data)[-1] == round(2800 / 10000 * 255)


def test_range_travels_with_the_record_and_the_export(deep_folder, settings, tmp_path):
    root = deep_folder()
    chosen = settings(path=str(root), channels=1, near_copies="keep")
    data = load_data(chosen)
    (tmp_path / "data.json").write_text(data.record().text())
    for row in range(10):  # contents change, and the range of the record stays
        (root / "light" / f"{row}.tif").write_bytes(tiff_bytes(np.full((8, 8), 60000, np.uint16)))
    again = load_data(replace(chosen, division=str(tmp_path / "data.json"), changed="accept"))
    assert again.pixel_range == data.pixel_range
    assert means(again)[-1] == 255
    assert PixelRange.stored(processor_settings(data)["pixel_range"]) == data.pixel_range
    record = DataRecord.read(tmp_path / "data.json")
    assert PixelRange.stored(replace(record, pixel_range=None).pixel_range) == EARLIER


def test_earlier_records_keep_the_earlier_rule():
    values = (RAMP * 4095).astype(np.uint16)
    assert np.array_equal(to_pixels(opened(values), 8, 1, pixel_range=EARLIER)[0], np.round(values / 257))
    assert np.array_equal(to_pixels(opened(RAMP.astype("f4")), 8, 1, pixel_range=EARLIER)[0], EXACT)
    assert to_pixels(opened((RAMP * 300).astype("f4")), 8, 1, pixel_range=EARLIER).max() == 255


def test_kind_of_pixels_that_the_set_lacks_is_refused():
    with pytest.raises(ValueError, match=r"floating-point numbers and no training image.*data\.pixel_range"):
        to_pixels(opened(RAMP.astype("f4")), 8, 1, pixel_range=PixelRange(integers=(0, 4095)))


def test_images_with_gaps_are_counted(deep_folder, settings):
    def with_gap(values, row):
        if row % 5 == 0:
            values[0, 0] = np.nan
        return values

    data = load_data(settings(path=str(deep_folder(with_gap, "float32")), channels=1, near_copies="keep"))
    assert "4 images have pixels without a value (NaN), which are read as black" in data.notes


def test_set_that_uses_a_hundredth_of_its_range_is_told(deep_folder, settings):
    root = deep_folder(lambda values, row: 30000 + values // 10)
    data = load_data(settings(path=str(root), channels=1, near_copies="keep"))
    assert any("of the pixels have levels from" in note and "of the range" in note for note in data.notes)
    wide = settings(path=str(root), channels=1, near_copies="keep", pixel_range=[30000, 30280])
    assert not any("of the pixels have levels from" in note for note in load_data(wide).notes)


@pytest.mark.parametrize("value", ["0,4095", [4095, 0], [1], [0, float("inf")], 4095, ["a", "b"]])
def test_unusable_range(settings, value):
    with pytest.raises(SettingError, match=r"data\.pixel_range: .*two numbers, the smaller first"):
        settings(pixel_range=value)


def test_new_kind_of_image_is_named(deep_folder, settings, tmp_path):
    root = deep_folder()
    chosen = settings(path=str(root), channels=1, near_copies="keep")
    (tmp_path / "data.json").write_text(load_data(chosen).record().text())
    for name in ("dark", "light"):
        for row in range(10):
            (root / name / f"{row}.tif").write_bytes(tiff_bytes(RAMP.astype("f4")))
    with pytest.raises(DataError, match=r"\.tif cannot be read as an image .*floating-point numbers"):
        load_data(replace(chosen, division=str(tmp_path / "data.json"), changed="accept"))
