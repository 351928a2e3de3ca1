"""Pictures of a report, as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from multilevel.recipes.export import ExportedModel

SIDE = 240  # pixels of the longer side
OPACITY = 0.6  # of the patch with the largest share
FOR_DEFECT, FOR_GOOD = (192, 57, 43), (31, 95, 153)


def thumbnail(path: Path, model: ExportedModel) -> str:
    """The whole picture, at most 240 pixels long, in the colours that the model reads."""
    return _encoded(model.thumbnail(path, SIDE, model.channels))


def read_pixels(path: Path, model: ExportedModel) -> np.ndarray:
    """The pixels that the model reads, uint8 [C, H, W]; those of the worst tile, if it was trained on tiles."""
    with model.open(path) as picture:
        return model.decisive(picture)


def heat_map(pixels: np.ndarray, shares: np.ndarray) -> str:
    """The shares of the patches over what the model reads: red speaks for a defect, blue for good.

    Args:
        pixels: uint8 [C, H, W].
        shares: float [rows, columns]; the largest share is the most opaque.
    """
    grey = np.asarray(Image.fromarray(pixels.mean(0).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    fine = np.asarray(Image.fromarray(shares.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    largest = float(np.abs(shares).max()) or 1.0
    opacity = (OPACITY * np.abs(fine) / largest)[:, :, None]
    colour = np.where(fine[:, :, None] > 0, FOR_DEFECT, FOR_GOOD)
    mixed = grey[:, :, None] * (1 - opacity) + colour * opacity
    return _encoded(Image.fromarray(mixed.round().astype(np.uint8)))


def _encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
