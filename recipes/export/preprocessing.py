"""Pillow's resizing and the data's normalization as tensor operations, which ONNX can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SUPPORT = 2.0  # of the bicubic filter, in pixels of the smaller picture
COEFFICIENT = -0.5


class Preprocessing(nn.Module):
    """Images of any size as they are read, to normalized square images; pixels are those of ``to_square``.

    The weights are those of Pillow's ``Resample.c``: the bicubic filter, stretched where the picture shrinks, around
    the centre of each new pixel, over the pixels that the picture has. Rows come first, then columns, and each result
    is rounded to 8 bits.

    Args:
        image_size: height and width of the result.
        fit: crop or stretch, see ``to_square``.
        mean: float32 [C], where white is 1.
        std: float32 [C].

    >>> preprocessing = Preprocessing(2, "crop", torch.zeros(1), torch.ones(1))
    >>> preprocessing(torch.full((1, 5, 3, 1), 51, dtype=torch.uint8))
    tensor([[[[0.2000, 0.2000],
              [0.2000, 0.2000]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, fit: str, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.image_size = image_size
        self.fit = fit
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("std", std.reshape(-1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, C] to float32 [N, C, image_size, image_size]."""
        pixels = image.permute(0, 3, 1, 2).float()
        height, width = (torch.scalar_tensor(side, dtype=torch.float64) for side in pixels.shape[2:])
        side = torch.minimum(height, width)
        rows, columns = (side, side) if self.fit == "crop" else (height, width)
        across = resampling(pixels.shape[3], (width - columns) / 2, columns / self.image_size, self.image_size)
        down = resampling(pixels.shape[2], (height - rows) / 2, rows / self.image_size, self.image_size)
        pixels = _eight_bits(pixels @ across.T)
        pixels = _eight_bits(down @ pixels)
        return (pixels / 255 - self.mean) / self.std


def resampling(count: int, start: Tensor, scale: Tensor, size: int) -> Tensor:
    """The weight of each pixel of a row in each pixel of the resized row.

    Args:
        count: pixels of the row.
        start: float64 [], where the kept part begins.
        scale: float64 [], pixels of the row per pixel of the result.
        size: pixels of the result.

    Returns:
        float32 [size, count].
    """
    centres = start + (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(count, dtype=torch.float64) + 0.5
    weights = bicubic((pixels[None] - centres[:, None]) / scale.clamp(min=1))
    return (weights / weights.sum(1, keepdim=True)).float()


def bicubic(distance: Tensor) -> Tensor:
    """The bicubic filter with coefficient -0.5 (Keys 1981), 0 from a distance of 2."""
    x, a = distance.abs(), COEFFICIENT
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < SUPPORT, far, torch.zeros_like(x)))


def _eight_bits(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
