"""Checkpoints, which are written atomically, verified on reading, and never unpickled.

A checkpoint folder contains the newest two checkpoints, each a folder ``step-N``: ``weights.safetensors``
(``LEVEL.PARAMETER``), ``state.safetensors`` (the tensors of optimizers and generators), ``state.json`` (everything
else) and ``digests.json`` (the SHA-256 of each of these files).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.callbacks import Callback
from multilevel.problems.engine import Engine
from multilevel.problems.errors import CheckpointError
from multilevel.problems.graph import Graph, check_match
from multilevel.solvers.files import check_ends, parse_json, read_whole

WEIGHTS, STATE, STRUCTURE = "weights.safetensors", "state.safetensors", "state.json"
DIGESTS = "digests.json"
FILES = (DIGESTS, WEIGHTS, STATE, STRUCTURE)
OWN = ".multilevel"  # after the name of a checkpoint whose plain name a stranger's file has
_NAME, _PARTIAL = re.compile(rf"step-(0|[1-9][0-9]*)({re.escape(OWN)})?"), re.compile(r"\.step-[0-9]+\.partial")
KEPT = 2  # the older one is a fallback if the disk loses the newest


class Checkpointing(Callback):
    """Saves a checkpoint every ``every`` steps, and after the last one.

    While updates of a level are skipped, it waits for the next successful update, which keeps earlier checkpoints.

    Args:
        folder: the checkpoint folder.
        every: steps between two checkpoints, at least 1.

    Examples:
        >>> Engine(graph, callbacks=[Checkpointing(folder, every=2)]).run(steps=3)  # the graph of Graph's example
        >>> sorted(path.name for path in folder.iterdir())
        ['step-2', 'step-3']
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every
        self._saved = 0

    def on_start(self, engine: Engine, steps: int) -> None:
        self._saved = engine.step

    def on_step(self, engine: Engine) -> None:
        if engine.step - self._saved >= self.every and not any(engine.skipped.values()):
            self._save(engine)

    def on_end(self, engine: Engine) -> None:
        if self._saved != engine.step:
            self._save(engine)

    def _save(self, engine: Engine) -> None:
        save_checkpoint(engine, self.folder)
        self._saved = engine.step


def save_checkpoint(engine: Engine, folder: Path) -> Path:
    """Save everything that the engine needs to continue, and remove all checkpoints except the newest ``KEPT``.

    With several ranks, all must call this; rank 0 writes.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: an optimizer or a scheduler has something other than numbers, text or tensors, or the
            checkpoint cannot be written. Earlier checkpoints are then kept.

    Examples:
        >>> engine.run(steps=2)  # the engine of Engine's example
        >>> save_checkpoint(engine, folder).name
        'step-2'
    """
    target = _free_name(folder, engine.step)
    state = engine.state_dict()
    if replicas.rank() > 0:
        return target
    modules = {level: state_of_level.pop("module") for level, state_of_level in state["levels"].items()}
    weights = {f"{level}.{name}": tensor for level, module in modules.items() for name, tensor in module.items()}
    tensors: dict[str, Tensor] = {}
    structure = _encode(state, tensors, "state", {})
    try:
        _write(target, folder / f".step-{engine.step}.partial", weights, tensors, structure)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint of step {engine.step} cannot be written to {folder} ({_reason(error)}); "
            "free some space and resume: earlier checkpoints are intact"
        ) from error
    _remove_old(folder, target)
    return target


def load_checkpoint(engine: Engine, folder: Path, verify: bool = True) -> list[str]:
    """Restore an engine from the newest intact checkpoint of a folder.

    Args:
        engine: the engine.
        folder: the checkpoint folder.
        verify: whether to refuse checkpoints without digests.

    Returns:
        One line for each damaged newer checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or it belongs to another graph; the engine is then unchanged.

    Examples:
        >>> _ = save_checkpoint(engine, folder)  # the engine of Engine's example, at step 0
        >>> engine.run(steps=2)
        >>> load_checkpoint(engine, folder), engine.step
        ([], 0)
    """
    newest, damaged = newest_intact(folder, verify=verify)
    tensors = _read(newest / STATE)
    try:
        state = _decode(parse_json((newest / STRUCTURE).read_text()), tensors)
        levels = state["levels"]
        weights = _read_weights(newest)
        for level, state_of_level in levels.items():
            state_of_level["module"] = weights.get(level, {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(_damage(newest / STRUCTURE, _reason(error))) from error
    before = copy.deepcopy(engine.state_dict())
    try:
        engine.load_state_dict(state)
    except CheckpointError:
        raise
    except Exception as error:  # an edited file can make torch raise any error
        engine.load_state_dict(before)
        raise CheckpointError(_damage(newest / STRUCTURE, _reason(error))) from error
    steps = sorted(set(replicas.gather(engine.step)))
    if len(steps) > 1:
        raise CheckpointError(f"the ranks found checkpoints of steps {steps}: {folder} must be the same for all")
    return damaged


def load_weights(graph: Graph, folder: Path, only: str | None = None, verify: bool = True) -> list[str]:
    """Load the parameters and buffers of the newest checkpoint with intact weights into the modules of a graph.

    Args:
        graph: the graph to load into.
        folder: the checkpoint folder.
        only: load only this level, so the checkpoint need not have others; None loads all.
        verify: whether to refuse checkpoints without digests.

    Returns:
        One line for each damaged newer checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or it belongs to another graph; nothing is then changed.

    Examples:
        >>> _ = save_checkpoint(engine, folder)  # the engine of Engine's example
        >>> _ = target.data.fill_(5.0)
        >>> load_weights(graph, folder), target.item()
        ([], 1.0)
    """
    newest, damaged = newest_intact(folder, [WEIGHTS], verify)
    take_weights(graph, newest, only)
    return damaged


def take_weights(graph: Graph, checkpoint: Path, only: str | None = None) -> None:
    """``load_weights`` from a single checkpoint's folder, which ``newest_intact`` returns."""
    weights = _read_weights(checkpoint)
    problems = graph.problems
    if only is not None:
        weights = {only: weights.get(only, {})}
        problems = {only: problems[only]}
    check_match(weights, problems)
    for level, problem in problems.items():
        problem.module.load_state_dict(weights.get(level, {}))


def newest_intact(
    folder: Path, files: Sequence[str] = (WEIGHTS, STATE, STRUCTURE), verify: bool = True
) -> tuple[Path, list[str]]:
    """The folder of the newest checkpoint with intact ``files``, and the damage to newer ones.

    Args:
        folder: the checkpoint folder.
        files: names of the files that are needed.
        verify: whether a checkpoint without digests counts as damaged.

    Raises:
        CheckpointError: there is no intact checkpoint.
    """
    damaged: list[str] = []
    for path in checkpoints(folder):
        problem = _problem(path, files, verify)
        if problem is None:
            return path, [f"{damage}; using {path.name} instead" for damage in damaged]
        damaged.append(problem)
    raise CheckpointError("; ".join(damaged) if damaged else f"{folder} holds no checkpoint (no folder step-N)")


def write_digests(checkpoint: Path) -> None:
    """Write the SHA-256 of each file of a checkpoint."""
    digests = {path.name: _digest(path) for path in sorted(checkpoint.iterdir()) if path.name != DIGESTS}
    (checkpoint / DIGESTS).write_text(json.dumps(digests))


def _write(
    target: Path, partial: Path, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], structure: Any
) -> None:
    """Write a checkpoint's folder atomically."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / STRUCTURE).write_text(json.dumps(structure))
        for name, stored in ((WEIGHTS, weights), (STATE, tensors)):
            save_file(_storable(stored), partial / name)
            shutil.copymode(partial / STRUCTURE, partial / name)  # save_file lets only the owner read it
        write_digests(partial)
        for path in (*partial.iterdir(), partial):
            _flush(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if _is_checkpoint(target):
        _discard(target)
    os.rename(partial, target)
    _flush(target.parent)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first, without files and folders that ``save_checkpoint`` has not written.

    >>> _ = save_checkpoint(engine, folder)  # the engine of Engine's example, at step 0
    >>> (folder / "step-best").mkdir()
    >>> [path.name for path in checkpoints(folder)]
    ['step-0']
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(filter(_is_checkpoint, paths), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The number of outer steps that a checkpoint's name gives.

    >>> step_of(Path("step-12"))
    12
    """
    return int(checkpoint.name.removeprefix("step-").removesuffix(OWN))


def _is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder with a checkpoint's name and at least one of its files."""
    named = _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    return bool(named) and any((path / name).is_file() for name in FILES)


def _free_name(folder: Path, step: int) -> Path:
    """The folder for the checkpoint of a step; another name if a stranger's file or folder has that."""
    path = folder / f"step-{step}"
    return path if _is_checkpoint(path) or not os.path.lexists(path) else path.with_name(f"{path.name}{OWN}")


def _remove_old(folder: Path, newest: Path) -> None:
    """Remove all checkpoints but ``newest`` and the ``KEPT`` - 1 before it, and those that were left half written."""
    older = [path for path in checkpoints(folder) if step_of(path) < step_of(newest)]
    kept = [newest, *older[: KEPT - 1]]
    for path in folder.iterdir():
        if _PARTIAL.fullmatch(path.name) or (path not in kept and _is_checkpoint(path)):
            _discard(path)


def _discard(checkpoint: Path) -> None:
    """Remove the files of a checkpoint, and its folder unless it has others."""
    for name in FILES:
        with suppress(FileNotFoundError, NotADirectoryError):
            (checkpoint / name).unlink()
    with suppress(OSError):
        checkpoint.rmdir()


def _problem(checkpoint: Path, files: Sequence[str], verify: bool) -> str | None:
    """The damage to a checkpoint; None if its files are intact, or it has no digests and ``verify`` is False."""
    try:
        digests = parse_json(read_whole(checkpoint / DIGESTS))
    except FileNotFoundError:
        missing = [name for name in files if not (checkpoint / name).is_file()]
        if verify:
            unknown = "is missing, so damage would not show: checkpoint.verify=false loads the checkpoint as it is"
            return f"{checkpoint / DIGESTS} {unknown}"
        return _damage(checkpoint / missing[0], "not there") if missing else None
    except (OSError, ValueError) as error:
        return _damage(checkpoint / DIGESTS, _reason(error))
    for name in files:
        try:
            intact = isinstance(digests, dict) and digests.get(name) == _digest(checkpoint / name)
        except OSError as error:
            return _damage(checkpoint / name, _reason(error))
        if not intact:
            return _damage(checkpoint / name, "its digest differs")
    return None


def _digest(path: Path) -> str:
    check_ends(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encode(value: Any, tensors: dict[str, Tensor], name: str, known: dict[int, str]) -> Any:
    """``value`` as JSON; its tensors go into ``tensors``, each once, under the name in ``known`` by its ``id``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = known.setdefault(id(value), name)
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value.astype(np.int64 if value.dtype.kind in "iu" else value.dtype))
        return {"array": name, "dtype": value.dtype.str}
    if isinstance(value, np.generic):
        return value.item()

    def encode(item: Any, key: Any) -> Any:
        return _encode(item, tensors, f"{name}.{key}", known)

    if isinstance(value, Mapping):
        return {"dict": [[_encode(key, tensors, name, known), encode(item, key)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encode(item, index) for index, item in enumerate(value)]}
    raise CheckpointError(f"{name} holds a {type(value).__name__}, which a checkpoint cannot hold")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return tensors[value["array"]].numpy().astype(value["dtype"])
    if "dict" in value:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["dict"]}
    if "list" in value:
        return [_decode(item, tensors) for item in value["list"]]
    return tuple(_decode(item, tensors) for item in value["tuple"])


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, since the format rejects tensors that share memory, such as tied weights."""
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
        raise CheckpointError(_damage(path, _reason(error))) from error


def _damage(path: Path, reason: str) -> str:
    return f"{path} is missing, cut off or altered ({reason})"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk before anything relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
