"""Writes an exported folder atomically."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from multilevel.recipes.data.tiles import Tiling
from multilevel.recipes.export.masking import MASKING, save_masking
from multilevel.recipes.export.onnx_model import ONNX, WRITING, OnnxModel, require_packages, write_onnx
from multilevel.recipes.export.operating_point import stored_operating_point
from multilevel.recipes.export.preprocessing import Preprocessing
from multilevel.recipes.export.quantization import QuantizationLoss, quantization_loss
from multilevel.recipes.export.reference import REFERENCE, reference_tensors
from multilevel.recipes.export.trained import TrainedModel
from multilevel.recipes.export.weights import (
    first_not_finite,
    load_dinov2,
    processor_settings,
    transformers_config,
    transformers_weights,
)
from multilevel.solvers import MultilevelError, SettingError
from multilevel.solvers.files import is_running, parse_json

FORMATS = ("transformers", "onnx")
PROCESSOR, WEIGHTS, CARD = "preprocessor_config.json", "model.safetensors", "README.md"
INSPECTION, EVALUATION = "inspection.json", "evaluation.json"


def check_export(format: str, output: Path, precision: str = "float32") -> None:
    """Raise before any work is done if an export cannot be written.

    Raises:
        SettingError: the format is unknown or has no such precision, or the output exists.
        MultilevelError: packages for the format are missing.
    """
    if format not in FORMATS:
        raise SettingError("format", format, f"one of {', '.join(FORMATS)}")
    if precision != "float32" and format != "onnx":
        raise SettingError("precision", precision, "float32 with format=transformers, or format=onnx")
    if output.exists():
        raise SettingError("output", str(output), "a folder that does not exist yet")
    if format == "onnx":
        require_packages(WRITING)


def refuse_tiles(format: str, tiling: Tiling | None) -> None:
    """Raise SettingError for an ONNX file of a model that labels pictures by their tiles, which such a file cannot
    cut."""
    if format == "onnx" and tiling is not None:
        expected = f"transformers: a model with data.tiles={tiling.count} is run by multilevel, which cuts the tiles"
        raise SettingError("format", format, expected)


def write_export(
    trained: TrainedModel,
    output: Path,
    format: str,
    card: Callable[[QuantizationLoss | None], str],
    precision: str = "float32",
    records: Mapping[str, Any] | None = None,
) -> QuantizationLoss | None:
    """Write configuration, weights, image processor, model card, the reference for monitoring, and the masking network,
    if there is one.

    Args:
        trained: the model.
        output: the folder to create.
        format: transformers (``model.safetensors``) or onnx (``model.onnx`` instead).
        card: the text of README.md, for a measured loss by quantization.
        precision: float32, or int8 with format onnx.
        records: contents of JSON files by name: ``inspection.json`` (how the head was chosen, probabilities of held-out
            images, the operating point, which ONNX stores, too) and ``evaluation.json`` (scores of references).

    Returns:
        The measured loss of int8; None with float32.

    Raises:
        SettingError: the format is unknown or has no such precision, the output exists or cannot be written, or ONNX is
            asked for without a classifier.
        MultilevelError: packages for the format are missing, or a weight or statistic is not finite.
    """
    check_export(format, output, precision)
    refuse_tiles(format, trained.data.tiling)
    if format == "onnx" and trained.classifier is None:
        raise SettingError("format", format, "transformers, since this run has no classifier with one class per image")

    data, loss = trained.data, None
    weights = transformers_weights(trained)
    masking = {} if trained.masking is None else trained.masking.state_dict()
    broken = first_not_finite(
        {"mean of the pixels": data.mean, "deviation of the pixels": data.std, **weights, **masking}
    )
    if broken is not None:
        raise MultilevelError(f"{broken} has values that are not finite: export a run that has not diverged")
    class_names = data.class_names if trained.classifier is not None else ()
    with _whole_folder(output) as folder:
        config = transformers_config(trained.autoencoder.mae.config, class_names)
        config.save_pretrained(folder)
        if format == "onnx":
            model = load_dinov2(config, weights)
            preprocessing = Preprocessing(data.image_size, data.fit, data.mean, data.std)
            point = stored_operating_point((records or {}).get(INSPECTION, {}), class_names)
            write_onnx(model, preprocessing, class_names, folder / ONNX, precision, point)
            if precision == "int8":
                loss = quantization_loss(trained, model, OnnxModel(folder / ONNX))
        else:
            save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / PROCESSOR).write_text(json.dumps(processor_settings(data), indent=2) + "\n")
        save_file(dict(reference_tensors(trained)), folder / REFERENCE)
        if trained.masking is not None:
            save_masking(trained.masking, trained.mask_settings, folder / MASKING)
        (folder / CARD).write_text(card(loss), encoding="utf-8", errors="backslashreplace")
        for name, contents in (records or {}).items():
            (folder / name).write_text(json.dumps(contents) + "\n")
        for path in folder.glob("*.safetensors"):
            shutil.copymode(folder / CARD, path)  # safetensors writes files that only their owner can read
    return loss


def read_json(path: Path) -> dict[str, Any]:
    """The contents of one of ``records``; empty if there is no such file.

    Raises:
        ValueError: it is not a JSON object.
        OSError: it cannot be read.
    """
    if not path.is_file():
        return {}
    contents = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(contents, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return contents


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name ``output`` once the block has ended well."""
    start = f".{output.name[-200:]}."
    for path in output.parent.glob(f"{glob.escape(start)}*.partial"):
        if not is_running(path.name.removeprefix(start).removesuffix(".partial")):  # it was killed while exporting
            shutil.rmtree(path, ignore_errors=True)
    partial = output.with_name(f"{start}{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.rename(partial, output)
    except OSError as error:
        raise SettingError("output", str(output), f"a writable folder ({error.strerror})") from error
    except SafetensorError as error:
        raise SettingError("output", str(output), f"a writable folder ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
