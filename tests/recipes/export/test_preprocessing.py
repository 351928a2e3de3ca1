"""The preprocessing in ONNX makes the pixels that Pillow makes."""

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from multilevel.recipes.data.pictures import to_pixels
from multilevel.recipes.export.preprocessing import Preprocessing

SIZES = [(24, 24), (23, 24), (7, 10), (24, 100), (120, 131), (90, 200), (5, 300), (1, 1), (48, 48), (600, 801)]


def levels(image, channels, fit):
    """Pixels of both, on the scale of 0 to 255."""
    preprocessing = Preprocessing(24, fit, torch.zeros(channels), torch.ones(channels))
    array = np.asarray(image).reshape(1, image.height, image.width, channels)
    return (preprocessing(torch.tensor(array))[0] * 255).numpy(), to_pixels(image, 24, channels, fit).astype(float)


def drawn(height, width, channels):
    random = np.random.default_rng(height + 1000 * width)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_pillow(fit, channels):
    for height, width in SIZES:
        found, expected = levels(drawn(height, width, channels), channels, fit)
        difference = np.abs(found - expected)
        assert difference.max() < 1.01  # where rounding meets a tie
        assert (difference > 0.01).mean() < 0.01, (height, width)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_tall_pictures_differ_by_two_levels_at_most(fit):
    """Which Pillow 13 resizes by columns first; each order rounds in between."""
    found, expected = levels(drawn(400, 60, 3), 3, fit)
    assert np.abs(found - expected).max() < 2.01
    if int(PIL.__version__.split(".")[0]) < 13:
        assert (np.abs(found - expected) > 0.01).mean() < 0.01


def test_images_are_normalized_by_channel():
    preprocessing = Preprocessing(4, "crop", torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.5, 2.0]))
    image = torch.tensor([51, 102, 255], dtype=torch.uint8).expand(2, 9, 5, 3)
    expected = torch.tensor([0.0, 0.0, 0.2])[:, None, None].expand(2, 3, 4, 4)
    torch.testing.assert_close(preprocessing(image), expected, rtol=0, atol=1e-6)
