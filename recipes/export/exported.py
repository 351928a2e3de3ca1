"""Runs an exported model, without the run or its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Dinov2Config

from multilevel.recipes.data.pictures import to_colours, upright
from multilevel.recipes.data.pixel_range import EARLIER, PixelRange
from multilevel.recipes.data.raster import MAX_PIXELS, open_raster
from multilevel.recipes.data.tiles import Pictures, Tiling, tile_pixels
from multilevel.recipes.export.folder import INSPECTION, PROCESSOR, WEIGHTS, read_json
from multilevel.recipes.export.onnx_model import ONNX, OnnxModel
from multilevel.recipes.export.operating_point import stored_operating_point
from multilevel.recipes.export.weights import first_not_finite, load_dinov2
from multilevel.solvers import MultilevelError, SettingError
from multilevel.solvers.files import parse_json

IDENTITY_DIGITS = 12
#: Pixels uint8 [B, C, H, W] to logits [B, classes] and features [B, width].
Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class ExportedModel:
    """A classifier, or only an encoder, from an exported folder of either format.

    Args:
        folder: written by ``multilevel export``; ``model.onnx`` is used if there are no other weights.
        device: device for PyTorch; onnxruntime runs on the CPU.

    Attributes:
        class_names: names of the classes, by label; empty without a classifier.
        image_size: pixels per side.
        channels: 1 or 3.
        fit: how an image becomes a square, see ``to_square``.
        name: the name of the folder, after that of the run for a folder named export; it tells nothing of the machine.
        operating_point: the stored threshold of the probability of a defect; None without one.
        tiling: how pictures are cut into tiles before that; None: they are not.
        pixel_range: the values that are black and white in pictures of more than 8 bits.
        max_pixels: the largest number of pixels of a picture.
        folder: the folder without symbolic links: a link may be moved to another export while this one is read.
        identity: 12 hexadecimal digits that name the model: of the file of its weights, its class names and its
            preprocessing. The two formats of one run are different models.

    Raises:
        SettingError: ``folder`` is not an exported folder.
        MultilevelError: the folder has a broken file, or needs onnxruntime, which is missing.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        given, folder = folder, folder.resolve()
        self.folder = folder
        self.name = f"{folder.parent.name}/{folder.name}" if folder.name == "export" else folder.name
        weights = [folder / name for name in (WEIGHTS, ONNX) if (folder / name).is_file()]
        if not weights or not (folder / PROCESSOR).is_file() or not (folder / "config.json").is_file():
            raise SettingError("EXPORT", str(given), "a folder written by multilevel export")
        try:
            settings, config = (parse_json((folder / name).read_text()) for name in (PROCESSOR, "config.json"))
            self.class_names = tuple(config["id2label"][str(label)] for label in range(len(config["id2label"])))
            self.image_size: int = config["image_size"]
            self.channels: int = config["num_channels"]
            self.fit = "crop" if settings["do_center_crop"] else "stretch"
            self.tiling = Tiling.stored(settings.get("tiles"), self.fit)
            self.pixel_range = PixelRange.stored(settings.get("pixel_range"))
            self.max_pixels = int(settings.get("max_pixels", MAX_PIXELS))
            self._mean, self._std = (np.array(settings[f"image_{name}"], np.float32) for name in ("mean", "std"))
            if not (np.isfinite(self._mean).all() and np.isfinite(self._std).all() and (self._std > 0).all()):
                raise ValueError("its mean or deviation of the pixels is not a finite number")
            if not self._mean.shape == self._std.shape == (self.channels,):
                raise ValueError(f"expected a mean and a deviation of the pixels for each of {self.channels} channels")
            self._run = _run(config, weights[0], device, self.normalized)
            self.operating_point = stored_operating_point(read_json(folder / INSPECTION), self.class_names)
            normalization = [self._mean.tolist(), self._std.tolist()]
            described = [self.class_names, self.image_size, self.channels, self.fit, *normalization]
            described += [] if self.tiling is None else [self.tiling.to_store()]
            described += [] if self.pixel_range == EARLIER else [self.pixel_range.to_store()]
            self.identity = _identity(weights[0], described)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise MultilevelError(f"{given} holds a broken export ({error}): export the run again") from error

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Pixels uint8 [B, C, H, W] to logits float32 [B, classes], or None, and features float32 [B, width]."""
        logits, features = self._run(pixels)
        return (logits if self.class_names else None), features

    def open(self, file: Path, side: int | None = None) -> Image.Image:
        """Open an image file of at most ``max_pixels``; for ``side`` see ``open_raster``."""
        return open_raster(file, side, self.max_pixels)

    def thumbnail(self, file: Path, side: int, channels: int) -> Image.Image:
        """The whole picture in a file, at most ``side`` pixels long."""
        with self.open(file, side) as picture:
            whole = to_colours(upright(picture), channels, self.pixel_range)
            return ImageOps.contain(whole, (side, side)) if max(whole.size) > side else whole

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """The input for a picture, as Pillow has opened it: uint8 [T, C, image_size, image_size], one image unless the
        model was trained on tiles."""
        return tile_pixels(picture, self.tiling, self.image_size, self.channels, self.fit, self.pixel_range)

    def of_pictures(self, tiles: Sequence[np.ndarray], batch_size: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Logits float32 [P, classes], or None, and features float32 [P, width] of pictures: see ``Pictures.join``.

        Args:
            tiles: of P pictures, see ``pixels``.
            batch_size: tiles to run the model on at once.
        """
        joined = np.concatenate(list(tiles))
        parts = [self(joined[start : start + batch_size]) for start in range(0, len(joined), batch_size)]
        of_tiles = [logits for logits, _ in parts if logits is not None]  # none without a classifier
        of_all = np.concatenate(of_tiles) if of_tiles else None
        features, logits = self._pictures(tiles).join(np.concatenate([features for _, features in parts]), of_all)
        return logits, features

    def decisive(self, picture: Image.Image) -> np.ndarray:
        """The worst tile of a picture, uint8 [C, image_size, image_size], or the picture itself; of an encoder's tiles
        the first."""
        pixels = self.pixels(picture)
        logits = self(pixels)[0] if len(pixels) > 1 else None
        if logits is None:
            return pixels[0]
        return pixels[self._pictures([pixels]).worst(probabilities(logits))[0]]

    def _pictures(self, tiles: Sequence[np.ndarray]) -> Pictures:
        name = None if self.tiling is None else self.tiling.good
        good = None if name is None or not self.class_names else self.class_names.index(name)
        return Pictures.of_tiles([len(pixels) for pixels in tiles], good)

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 [B, C, H, W] as the network reads them, float32."""
        return (pixels.astype(np.float32) / 255 - self._mean[:, None, None]) / self._std[:, None, None]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes, float64 [N, classes]."""
    return torch.from_numpy(logits).double().softmax(1).numpy()


def _run(
    config: dict[str, Any], path: Path, device: torch.device, normalized: Callable[[np.ndarray], np.ndarray]
) -> Run:
    """The model in a file; one that does not preprocess gets normalized images, float32 [B, C, H, W]."""
    onnx = OnnxModel(path) if path.name == ONNX else None
    weights = {} if onnx else load_file(path)
    if broken := first_not_finite(weights):
        raise ValueError(f"{broken} has values that are not finite")
    model = None if onnx else load_dinov2(Dinov2Config.from_dict(config), weights).to(device)

    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if onnx is not None and onnx.preprocesses:
            logits, features = onnx.run(["logits", "features"], pixels.transpose(0, 2, 3, 1))
            return logits, features
        images = normalized(pixels)
        if onnx is not None:
            logits, features = onnx.run(["logits", "features"], images)
            return logits, features
        assert model is not None
        with torch.no_grad():
            on_device = model(torch.from_numpy(images).to(device))
        return on_device[0].cpu().numpy(), on_device[1].cpu().numpy()

    return run


def _identity(path: Path, described: Any) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(described).encode())
    return digest.hexdigest()[:IDENTITY_DIGITS]
