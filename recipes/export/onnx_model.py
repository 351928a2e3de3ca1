"""Writes the classifier in ONNX, and checks it against PyTorch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from multilevel.recipes.export.weights import FeaturesAndLogits
from multilevel.solvers import MultilevelError

ONNX = "model.onnx"
WRITING = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4


def require_packages(names: Sequence[str]) -> None:
    """Raise MultilevelError with the install command unless the packages are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MultilevelError(f"ONNX needs packages that are not installed: pip install {' '.join(missing)}")


def write_onnx(model: FeaturesAndLogits, path: Path) -> None:
    """Write ``pixel_values`` [B, C, H, W], normalized, to ``logits`` [B, classes] and ``features`` [B, width].

    Args:
        model: a model on the CPU.
        path: the file; its batch size is dynamic.

    Raises:
        MultilevelError: onnxruntime's logits differ from PyTorch's by more than 1e-4.
    """
    config = model.model.config
    shape = (config.num_channels, config.image_size, config.image_size)
    example = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            model,
            (example[:2],),
            path,
            input_names=["pixel_values"],
            output_names=["logits", "features"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        expected = model(example)[0].numpy()
    logits = OnnxModel(path)(example.numpy())[0]
    difference = float(np.abs(logits - expected).max())
    if not difference <= TOLERANCE:
        raise MultilevelError(f"the exported model's logits are {difference:.2g} from PyTorch's, above {TOLERANCE:g}")


class OnnxModel:
    """Normalized images float32 [B, C, H, W] to logits [B, classes] and features [B, width], by onnxruntime.

    Raises:
        MultilevelError: it is not installed.
    """

    def __init__(self, path: Path) -> None:
        require_packages(("onnxruntime",))
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = self.session.run(["logits", "features"], {"pixel_values": images})
        return logits, features


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress reports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
