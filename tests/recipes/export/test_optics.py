"""Optics have the values of closed forms; near copies are those of numpy's correlations."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from multilevel.recipes.export.optics import MEASURES, Optics, measure_optics, near_copies, thumbnail


def picture(values):
    return Image.fromarray(np.asarray(values).round().clip(0, 255).astype(np.uint8))


def measured(image):
    return dict(zip(MEASURES, measure_optics(image).tolist(), strict=True))


def texture(random, height=300, width=400):
    return np.asarray(picture(random.integers(0, 256, (height, width))).filter(ImageFilter.GaussianBlur(1)), float)


def test_the_sharpness_of_a_wave_is_its_frequency():
    across = np.arange(400)
    for period in (10, 20, 40):
        wave = picture(np.tile(128 + 100 * np.sin(2 * np.pi * across / period), (300, 1)))
        steps = np.sin(np.pi / period) / np.pi  # of a wave whose slope is the difference of neighbours
        assert measured(wave)["sharpness"] == pytest.approx(steps, rel=0.01)
        reduced = np.sin(np.pi / period * 300 / 256) / np.pi  # the shorter side has 256 of 300 pixels
        assert measured(wave)["sharpness at 256 pixels"] == pytest.approx(reduced, rel=0.03)


def test_sharpness_depends_on_neither_brightness_nor_contrast():
    values = texture(np.random.default_rng(0))
    sharpness = [measured(picture(scale * values + 20))["sharpness"] for scale in (0.4, 0.8)]
    assert sharpness[0] == pytest.approx(sharpness[1], rel=0.01)


@pytest.mark.parametrize("deviation", [2.0, 5.0, 12.0])
def test_noise_brightness_contrast_and_size_are_those_of_the_picture(deviation):
    random = np.random.default_rng(1)
    plane = 60 + np.linspace(0, 100, 500)[None] + np.linspace(0, 20, 400)[:, None]
    values = plane + random.normal(0, deviation, plane.shape)
    found = measured(picture(values))
    assert found["noise"] == pytest.approx(np.hypot(deviation, np.sqrt(1 / 12)), rel=0.02)  # and that of rounding
    assert found["brightness"] == pytest.approx(120, abs=0.1)
    assert found["contrast"] == pytest.approx(values.std(), abs=0.1)
    assert (found["width"], found["height"]) == (500, 400)


def test_less_resolution_at_unchanged_size_is_seen():
    original = picture(texture(np.random.default_rng(2)))
    halved = original.resize((200, 150), Image.Resampling.BICUBIC).resize((400, 300), Image.Resampling.BICUBIC)
    for changed in (halved, original.filter(ImageFilter.GaussianBlur(1))):
        assert measured(changed)["sharpness"] < 0.8 * measured(original)["sharpness"]
        assert measured(changed)["noise"] < 0.5 * measured(original)["noise"]


def test_pictures_are_measured_upright_in_grey_and_as_small_as_they_are():
    turned = picture(texture(np.random.default_rng(3)))
    turned.getexif()[0x0112] = 6
    turned.info["exif"] = turned.getexif().tobytes()
    assert measure_optics(turned)[-2:].tolist() == [300, 400]
    grey = picture(texture(np.random.default_rng(3)))
    np.testing.assert_array_equal(measure_optics(grey.convert("RGB")), measure_optics(grey))
    for size in ((1, 1), (2, 5), (3, 3)):
        assert np.isfinite(measure_optics(Image.new("RGB", size, (9, 9, 9)))).all()


def test_near_copies_are_connected_by_their_correlation():
    random = np.random.default_rng(4)
    parts = random.integers(30, 220, (5, 64))
    thumbnails = np.concatenate([parts, 0.5 * parts[:2] + 10, np.full((2, 64), 7)]).round().astype(np.uint8)
    thumbnails[5] += random.integers(0, 12, 64).astype(np.uint8)
    close = np.corrcoef(thumbnails[:7].astype(float)) > 0.95
    assert close[0, 5]
    assert close[1, 6]
    assert close.sum() == 7 + 4
    groups = near_copies(thumbnails)
    np.testing.assert_array_equal(groups[:7, None] == groups[None, :7], close)
    assert len(set(groups.tolist())) == 7  # constant pictures are no copies of each other
    chain = np.array([[0, 0, 0, 100], [0, 0, 30, 100], [0, 0, 60, 100]], np.uint8)
    assert len(set(near_copies(chain, 0.9).tolist())) == 1
    assert np.corrcoef(chain)[0, 2] < 0.9  # the ends of a chain need not be copies


def test_optics_of_pictures_are_joined_in_order():
    pictures = [picture(texture(np.random.default_rng(seed), 40, 30 + seed)) for seed in range(3)]
    joined = Optics.joined([Optics.of(one) for one in pictures])
    assert joined.measures[:, 5].tolist() == [30, 31, 32]
    np.testing.assert_array_equal(joined.thumbnails[2], thumbnail(pictures[2]))
