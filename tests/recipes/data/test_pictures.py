from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from multilevel.recipes.data.pictures import to_pixels


def saved(picture, file_format, **options):
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return Image.open(io.BytesIO(stream.getvalue()))


def test_picture_of_the_right_size_is_untouched():
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(saved(Image.fromarray(values), "PNG"), 8, 3), values.transpose(2, 0, 1))


def test_grey_comes_in_one_channel():
    values = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    assert np.array_equal(to_pixels(Image.fromarray(values), 8, 1), values[None])


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(file_format):
    values = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    pixels = to_pixels(saved(Image.fromarray(values), file_format), 8, 1)
    assert np.array_equal(pixels[0], np.round(values / 65535 * 255).astype(np.uint8))


def test_floating_point_counts_from_zero_to_one():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(to_pixels(Image.fromarray(values), 8, 1)[0], np.round(values * 255).astype(np.uint8))


def test_transparent_parts_become_white():
    values = np.zeros((8, 8, 4), dtype=np.uint8)
    values[:, 4:, 3] = 255
    pixels = to_pixels(saved(Image.fromarray(values), "PNG"), 8, 3)
    assert (pixels[:, :, :4] == 255).all()
    assert (pixels[:, :, 4:] == 0).all()


def test_transparent_palette_becomes_white():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert to_pixels(saved(picture, "PNG"), 8, 3)[:, 0, 0].tolist() == [10, 20, 30]
    assert (to_pixels(saved(picture, "PNG", transparency=1), 8, 3) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_accepted(mode, channels):
    pixels = to_pixels(Image.new(mode, (11, 9)), 4, channels)
    assert pixels.shape == (channels, 4, 4)
    assert pixels.dtype == np.uint8


def test_black_ink_is_black():
    assert (to_pixels(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), 4, 1) == 0).all()


@pytest.mark.parametrize("turned", [False, True])
def test_short_side_is_resized_and_the_centre_cut_out(turned):
    values = np.random.default_rng(0).integers(0, 256, (16, 48), dtype=np.uint8)
    picture, size, centre = Image.fromarray(values), (24, 8), (8, 0, 16, 8)
    if turned:
        picture, size, centre = Image.fromarray(values.T.copy()), (8, 24), (0, 8, 8, 16)
    resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC).crop(centre)).astype(int)
    assert abs(to_pixels(picture, 8, 1)[0] - resized).max() <= 1


def test_shrinking_averages():
    values = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)  # a chessboard of single pixels
    pixels = to_pixels(Image.fromarray(values), 8, 1).astype(int)
    assert abs(pixels - 127.5).max() < 8


def test_orientation_mark_is_obeyed():
    values = np.zeros((8, 8), dtype=np.uint8)
    values[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = to_pixels(saved(Image.fromarray(values), "PNG", exif=exif), 8, 1)
    assert (pixels[0, -1] == 255).all()
    assert (pixels[0, :-1] == 0).all()


def test_stretching_keeps_what_the_crop_cuts_off():
    values = np.zeros((8, 24), np.uint8)
    values[:, :8] = 255  # the left third, outside the centre square
    picture = Image.fromarray(values)
    assert not to_pixels(picture, 8, 1).any()
    stretched = to_pixels(picture, 6, 1, "stretch")[0]
    assert (stretched[:, 0] == 255).all()
    assert not stretched[:, 4:].any()
