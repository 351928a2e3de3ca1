"""Checkpoints: written whole or not at all, and nothing unpickled when they are read.

A checkpoint folder holds one folder a checkpoint, ``step-N``: ``weights.safetensors`` (``LEVEL.PARAMETER``),
``state.safetensors`` (the tensors of optimizers and generators) and ``state.json`` (everything else).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from multilevel.problems.callbacks import Callback
from multilevel.problems.engine import Engine, check_match
from multilevel.problems.errors import CheckpointError
from multilevel.problems.graph import Graph

WEIGHTS, STATE, STRUCTURE = "weights.safetensors", "state.safetensors", "state.json"


class Checkpointing(Callback):
    """Saves a checkpoint every ``every`` steps, and after the last.

    Args:
        folder: the checkpoint folder.
        every: steps between two checkpoints, at least 1.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every
        self._saved = -1

    def on_step(self, engine: Engine) -> None:
        if engine.step % self.every == 0:
            self._save(engine)

    def on_end(self, engine: Engine) -> None:
        if self._saved != engine.step:
            self._save(engine)

    def _save(self, engine: Engine) -> None:
        save_checkpoint(engine, self.folder)
        self._saved = engine.step


def save_checkpoint(engine: Engine, folder: Path) -> Path:
    """Save all that the engine needs to go on from here, and remove older checkpoints.

    Returns:
        The new checkpoint's own folder.

    Raises:
        CheckpointError: an optimizer or a scheduler holds something that is no number, text or tensor.
    """
    state = engine.state_dict()
    modules = {level: one.pop("module") for level, one in state["levels"].items()}
    weights = {f"{level}.{name}": tensor for level, module in modules.items() for name, tensor in module.items()}
    tensors: dict[str, Tensor] = {}
    structure = _encode(state, tensors, "state")
    target = folder / f"step-{engine.step}"
    partial = folder / f".step-{engine.step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_storable(weights), partial / WEIGHTS)
    save_file(_storable(tensors), partial / STATE)
    (partial / STRUCTURE).write_text(json.dumps(structure))
    for path in (*partial.iterdir(), partial):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(partial, target)
    _flush(folder)
    for other in folder.iterdir():
        if other != target and other.name.lstrip(".").startswith("step-"):
            shutil.rmtree(other)
    return target


def load_checkpoint(engine: Engine, folder: Path) -> None:
    """Bring an engine to the newest checkpoint of a folder.

    Raises:
        CheckpointError: there is none, it is cut off, or it is of another graph; the engine is then unchanged.
    """
    newest = newest_checkpoint(folder)
    tensors = _read(newest / STATE)
    try:
        state = _decode(json.loads((newest / STRUCTURE).read_text()), tensors)
        levels = state["levels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _cut_off(newest / STRUCTURE, error) from error
    weights = _read_weights(newest)
    for level, one in levels.items():
        one["module"] = weights.get(level, {})
    engine.load_state_dict(state)


def load_weights(graph: Graph, folder: Path, only: str | None = None) -> None:
    """Give the modules of a graph the parameters and buffers of the newest checkpoint of a folder.

    Args:
        graph: whose modules they are.
        folder: of the checkpoints.
        only: one level, the other ones of the checkpoint and of the graph being left alone; None takes all.

    Raises:
        CheckpointError: there is none, it is cut off, or it is of another graph; nothing is changed then.
    """
    weights = _read_weights(newest_checkpoint(folder))
    problems = graph.problems
    if only is not None:
        weights = {only: weights.get(only, {})}
        problems = {only: problems[only]}
    check_match(weights, problems)
    for level, problem in problems.items():
        problem.module.load_state_dict(weights.get(level, {}))


def newest_checkpoint(folder: Path) -> Path:
    """The folder of the checkpoint with the largest step.

    Raises:
        CheckpointError: there is none.
    """
    found = {
        int(path.name.removeprefix("step-")): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.startswith("step-") and path.name.removeprefix("step-").isdigit()
    }
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint (no folder step-N)")
    return found[max(found)]


def _encode(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """``value`` as JSON; its tensors go into ``tensors``, under their places."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[place] = value
        return {"tensor": place}
    if isinstance(value, np.ndarray):
        tensors[place] = torch.from_numpy(value.astype(np.int64 if value.dtype.kind in "iu" else value.dtype))
        return {"array": place, "dtype": value.dtype.str}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        pairs = [[_encode(key, tensors, place), _encode(one, tensors, f"{place}.{key}")] for key, one in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(one, tensors, f"{place}.{index}") for index, one in enumerate(value)]}
    raise CheckpointError(f"{place} holds a {type(value).__name__}, which a checkpoint cannot hold")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return tensors[value["array"]].numpy().astype(value["dtype"])
    if "dict" in value:
        return {_decode(key, tensors): _decode(one, tensors) for key, one in value["dict"]}
    if "list" in value:
        return [_decode(one, tensors) for one in value["list"]]
    return tuple(_decode(one, tensors) for one in value["tuple"])


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: the format takes no tensors that share memory, as tied weights do."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _read_weights(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """``{level: {name: tensor}}``."""
    weights: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read(checkpoint / WEIGHTS).items():
        level, _, name = key.partition(".")
        weights.setdefault(level, {})[name] = tensor
    return weights


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _cut_off(path, error) from error


def _cut_off(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is missing or cut off ({' '.join(str(error).split()) or type(error).__name__})")


def _flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's entries, before anything that relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
