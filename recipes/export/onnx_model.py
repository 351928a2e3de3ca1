"""Writes a classifier in ONNX with its preprocessing and class names, and runs it."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multilevel.recipes.export.operating_point import OperatingPoint
from multilevel.recipes.export.preprocessing import Preprocessing
from multilevel.recipes.export.weights import FeaturesAndLogits
from multilevel.solvers import MultilevelError

ONNX = "model.onnx"
WRITING = ("onnx", "onnxscript", "onnxruntime")
PRECISIONS = ("float32", "int8")
CLASS_NAMES, OPERATING_POINT = "class_names", "operating_point"  # in the file's metadata, as JSON
TOLERANCE = 1e-4
_EXAMPLES = 3


def require_packages(names: Sequence[str]) -> None:
    """Raise MultilevelError with the install command unless the packages are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MultilevelError(f"ONNX needs packages that are not installed: pip install {' '.join(missing)}")


def write_onnx(
    model: FeaturesAndLogits,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    path: Path,
    precision: str = "float32",
    point: OperatingPoint | None = None,
) -> None:
    """Write a file that labels images as they are read.

    Its input is ``image``, uint8 [N, H, W, C]: N images of one size, any size, with C channels as in training (1 grey,
    3 RGB). Its outputs are ``label`` (text [N]), ``probabilities`` and ``logits`` float32 [N, classes], and
    ``features`` float32 [N, width]; with an operating point also ``defect`` (the probability of a defect, float32 [N])
    and ``stop`` (bool [N]).

    Args:
        model: a model on the CPU.
        preprocessing: on the CPU.
        class_names: the classes, by label; also in the file's metadata, as JSON under ``class_names``.
        path: the file.
        precision: float32, or int8 for weights and products of matrices, with scales of activations found for each
            input (onnxruntime's dynamic quantization, one scale for each output channel of a weight).
        point: the operating point; also in the file's metadata, as JSON under ``operating_point``.

    Raises:
        MultilevelError: onnxruntime's logits in float32 differ from PyTorch's by more than 1e-4.
    """
    import onnx

    size, channels = preprocessing.image_size, model.model.config.num_channels
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (_EXAMPLES, size, size, channels), dtype=torch.uint8, generator=random)
    example = preprocessing(image)
    with tempfile.TemporaryDirectory() as folder:
        core = Path(folder) / ONNX
        _export(model, example, core, "pixel_values", ["logits", "features"], (0,))
        if precision == "int8":
            quantize(core)
        first = Path(folder) / "preprocessing.onnx"
        larger = torch.zeros(2, size + 1, size + 2, channels, dtype=torch.uint8)  # of sizes that differ
        _export(preprocessing, larger, first, "image", ["normalized"], (0, 1, 2))
        joined = _joined(onnx.load(first), onnx.load(core), class_names, point)
    onnx.save(joined, path)
    if precision == "float32":
        with torch.no_grad():
            expected = model(example)[0].numpy()
        logits = OnnxModel(path).run(["logits"], image.numpy())[0]
        difference = float(np.abs(logits - expected).max())
        if not difference <= TOLERANCE:
            text = f"the exported model's logits are {difference:.2g} from PyTorch's, above {TOLERANCE:g}"
            raise MultilevelError(text)


def quantize(path: Path) -> None:
    """Replace a model by one with weights and products of matrices in 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _quiet():
        quant_pre_process(path, path)  # folds constants, so that all weights are seen
        quantize_dynamic(path, path, weight_type=QuantType.QInt8, per_channel=True)


class OnnxModel:
    """A classifier in a file, by onnxruntime on the CPU.

    Args:
        path: written by ``write_onnx``, or by earlier versions, whose input is ``pixel_values``.

    Attributes:
        preprocesses: whether its input is ``image``, as it is read, and not normalized ``pixel_values``.

    Raises:
        MultilevelError: onnxruntime is not installed.
        ValueError: the file is not such a classifier.
    """

    def __init__(self, path: Path) -> None:
        require_packages(("onnxruntime",))
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class
            raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error
        if not self.session.get_inputs() or not {"logits", "features"} <= {
            output.name for output in self.session.get_outputs()
        }:
            raise ValueError(f"{path.name} is not a classifier that multilevel has written")
        self.input = self.session.get_inputs()[0].name
        self.preprocesses = self.input == "image"

    def run(self, outputs: Sequence[str], images: np.ndarray) -> list[np.ndarray]:
        """The named outputs for uint8 [N, H, W, C], or normalized float32 [N, C, H, W] unless it preprocesses."""
        return self.session.run(list(outputs), {self.input: images})


def _export(
    module: nn.Module, example: Tensor, path: Path, input_name: str, outputs: Sequence[str], dynamic: Sequence[int]
) -> None:
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            module,
            (example,),
            path,
            input_names=[input_name],
            output_names=list(outputs),
            dynamic_shapes=(dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def _joined(preprocessing: Any, core: Any, class_names: Sequence[str], point: OperatingPoint | None) -> Any:
    """One model from images to labels, with the class names in its metadata."""
    from onnx import TensorProto, compose, helper, numpy_helper

    core.ir_version = preprocessing.ir_version
    prefixed = compose.add_prefix(preprocessing, "preprocessing/", rename_inputs=False, rename_outputs=False)
    model = compose.merge_models(prefixed, core, [("normalized", "pixel_values")])
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(class_names, object), CLASS_NAMES))
    graph.node.extend(
        [
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["class_number"], axis=1, keepdims=0),
            helper.make_node("Gather", [CLASS_NAMES, "class_number"], ["label"]),
        ]
    )
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(class_names)]),
        *graph.output,
    ]
    if point is not None:
        outputs += _add_stop(graph, [name != point.good for name in class_names], point.threshold)
    del graph.output[:]
    graph.output.extend(outputs)
    for axis, name in enumerate(("batch", "height", "width")):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
    texts = {CLASS_NAMES: list(class_names), **({} if point is None else {OPERATING_POINT: point.record()})}
    helper.set_model_props(model, {name: json.dumps(value, ensure_ascii=False) for name, value in texts.items()})
    return model


def _add_stop(graph: Any, defects: Sequence[bool], threshold: float) -> list[Any]:
    """Compute the probability of a defect and whether it reaches the threshold; returns the two outputs."""
    from onnx import TensorProto, helper, numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.array(defects, np.float32), "is_defect"))
    graph.initializer.append(numpy_helper.from_array(np.array(threshold, np.float32), "threshold"))
    graph.node.extend(
        [
            helper.make_node("MatMul", ["probabilities", "is_defect"], ["defect"]),
            helper.make_node("GreaterOrEqual", ["defect", "threshold"], ["stop"]),
        ]
    )
    return [
        helper.make_tensor_value_info("defect", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("stop", TensorProto.BOOL, ["batch"]),
    ]


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
