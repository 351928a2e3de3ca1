"""Checkpoints whose digests fit, but whose contents no run has written."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trials.base import Named, command, contents
from trials.checkpoints import started

Change = Callable[[Path], object]  # of the folder of a checkpoint
RESUME, EVALUATE = ["train", "resume=run"], ["evaluate", "run"]
EXPORT = ["export", "run", "output=new", "head=own", "references=false"]


def sign(checkpoint: Path) -> None:
    """Write digests that fit."""
    files = [path for path in checkpoint.iterdir() if path.name != "digests.json"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (checkpoint / "digests.json").write_text(json.dumps(digests))


def text(content: str) -> Change:
    return lambda checkpoint: (checkpoint / "state.json").write_text(content)


def structure(change: Callable[[Any], Any]) -> Change:
    """Change the decoded state.json; what ``change`` returns replaces it, unless that is None."""

    def apply(checkpoint: Path) -> None:
        path = checkpoint / "state.json"
        value = json.loads(path.read_text())
        changed = change(value)
        path.write_text(json.dumps(value if changed is None else changed))

    return apply


def field(*names: str, value: Any) -> Change:
    """Set a field of nested encoded mappings."""

    def change(state: Any) -> None:
        for name in names[:-1]:
            state = next(item for key, item in state["dict"] if key == name)
        pair = next(pair for pair in state["dict"] if pair[0] == names[-1])
        pair[1] = value

    return structure(change)


def without(name: str) -> Change:
    return structure(lambda state: {"dict": [pair for pair in state["dict"] if pair[0] != name]})


def everywhere(old: str, new: str) -> Change:
    def apply(checkpoint: Path) -> None:
        path = checkpoint / "state.json"
        content = path.read_text()
        assert old in content, old
        path.write_text(content.replace(old, new))

    return apply


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def apply(checkpoint: Path) -> None:
        values = load_file(checkpoint / file)
        change(values)
        save_file({name: tensor.contiguous() for name, tensor in values.items()}, checkpoint / file)

    return apply


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Change the first floating-point tensor of the weights of the level ``pretrain``."""

    def apply(values: dict[str, torch.Tensor]) -> None:
        name = min(name for name in values if name.startswith("pretrain.") and values[name].is_floating_point())
        values[name] = change(values[name])

    return tensors("weights.safetensors", apply)


def raw(file: str, content: Callable[[bytes], bytes]) -> Change:
    def apply(checkpoint: Path) -> None:
        path = checkpoint / file
        path.write_bytes(content(path.read_bytes()))

    return apply


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the header of the weights' file."""

    def apply(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        values = json.loads(content[8 : 8 + length])
        change(values)
        encoded = json.dumps(values).encode()
        return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]

    return raw("weights.safetensors", apply)


def renamed(values: dict[str, torch.Tensor]) -> None:
    for name in list(values):
        values[name.replace("pretrain.", "other.")] = values.pop(name)


def widen(values: dict[str, Any]) -> None:
    name = min(name for name in values if name != "__metadata__")
    values[name]["shape"] = [1 << 62, 1 << 62]


#: Name, change, command, and the exit statuses that are right: a value that no run has is refused, and one that a run
#: could have may be used.
CHANGED: list[tuple[str, Change, list[str], tuple[int, ...]]] = [
    ("state.json is a number", text("3"), RESUME, (2,)),
    ("state.json is a list", text("[1, 2]"), RESUME, (2,)),
    ("state.json is no JSON", text("{"), RESUME, (2,)),
    ("state.json is nested 100,000 deep", text("[" * 100_000 + "]" * 100_000), RESUME, (2,)),
    ("state.json is nested 400 deep in tuples", text('{"tuple":[' * 400 + "]}" * 400), RESUME, (2,)),
    ("state.json has a byte order mark", raw("state.json", lambda content: b"\xef\xbb\xbf" + content), RESUME, (0, 2)),
    ("state.json is not UTF-8", raw("state.json", lambda content: b"\xff" + content), RESUME, (2,)),
    ("the step is a text", field("step", value="3"), RESUME, (2,)),
    ("the step is null", field("step", value=None), RESUME, (2,)),
    ("the step is negative", field("step", value=-1), RESUME, (2,)),
    ("the step is infinite", field("step", value=float("inf")), RESUME, (2,)),
    ("the step is half a step", field("step", value=1.5), RESUME, (2,)),
    ("the step is missing", without("step"), RESUME, (2,)),
    ("the levels are missing", without("levels"), RESUME, (2,)),
    ("the levels are a list", field("levels", value={"list": []}), RESUME, (2,)),
    ("a level is empty", field("levels", "pretrain", value={"dict": []}), RESUME, (2,)),
    ("a level is null", field("levels", "pretrain", value=None), RESUME, (2,)),
    ("a key is a list", structure(lambda state: state["dict"].append([{"list": []}, 1])), RESUME, (0, 2)),
    ("a pair has three parts", structure(lambda state: state["dict"].append([1, 2, 3])), RESUME, (2,)),
    ("the random states are missing", without("random"), RESUME, (2,)),
    ("a random state is too short", field("random", "python", value={"tuple": [3, {"tuple": [1]}]}), RESUME, (2,)),
    ("a random state is of objects", everywhere('"<u4"', '"O"'), RESUME, (0, 2)),
    ("an array's type is unknown", everywhere('"<u4"', '"import os"'), RESUME, (2,)),
    ("a tensor is missing", everywhere('"state.random.cpu"', '"state.random.gpu"'), RESUME, (2,)),
    ("a tensor's name is a list", everywhere('"state.random.cpu"', '["a"]'), RESUME, (2,)),
    ("the tensors of the state are gone", tensors("state.safetensors", dict.clear), RESUME, (2,)),
    ("the weights are gone", tensors("weights.safetensors", dict.clear), RESUME, (2,)),
    ("the weights are of another level", tensors("weights.safetensors", renamed), EVALUATE, (2,)),
    ("a weight has another shape", first(lambda tensor: tensor.reshape(-1)[:3]), RESUME, (2,)),
    ("a weight is a whole number", first(lambda tensor: torch.ones_like(tensor, dtype=torch.int64)), RESUME, (0, 2)),
    ("a weight is complex", first(lambda tensor: tensor.to(torch.complex64)), EVALUATE, (0, 2)),
    ("a weight is NaN, exported", first(lambda tensor: tensor * float("nan")), EXPORT, (2,)),
    ("a weight is infinite, exported", first(lambda tensor: tensor + float("inf")), EXPORT, (2,)),
    ("a weight is NaN, evaluated", first(lambda tensor: tensor * float("nan")), EVALUATE, (0, 2)),
    ("the header is 2^60 bytes long", raw("weights.safetensors", lambda old: struct.pack("<Q", 1 << 60) + old[8:]),
     EVALUATE, (2,)),
    ("a shape is larger than any memory", header(widen), EVALUATE, (2,)),
    ("the header is not JSON", raw("weights.safetensors", lambda old: old[:9] + b"{" * 20 + old[29:]), EXPORT, (2,)),
]  # fmt: skip


def fuzz(value: Any, generator: random.Random) -> Any:
    """Replace a random value in a structure."""
    parents: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            parents.append((node, key))
            if isinstance(item, dict | list):
                visit(item)

    visit(value)
    node, key = generator.choice(parents[:400])
    node[key] = generator.choice([None, -1, 1e308, "", [], {}, {"tensor": "x"}, {"tuple": [1]}, True, 1 << 80])
    return value


def attempt(change: Change, words: list[str], statuses: tuple[int, ...], folder: Path) -> list[str]:
    run = started(folder)
    if words == RESUME:  # a step is left to do
        shutil.rmtree(run / "checkpoint" / "step-3")
    for checkpoint in run.glob("checkpoint/step-*"):
        change(checkpoint)
        sign(checkpoint)
    before = contents(run)
    outcome = command(folder, *words)
    problems = outcome.problems(*statuses)
    if outcome.status == 2:
        after = contents(run)
        problems += [f"{name} is lost or changed" for name in before if after.get(name) != before[name]]
        if (folder / "new").exists():
            problems.append("an export is there after all")
    return problems


def structures(generator: random.Random) -> Iterator[Named]:
    for name, change, words, statuses in CHANGED:
        yield f"fitting digests: {name}", partial(attempt, change, words, statuses)
    for number in range(5):
        seed = generator.random()
        change = structure(partial(_fuzzed, seed))
        yield (
            f"fitting digests: value {number} of the state replaced at random",
            partial(attempt, change, RESUME, (0, 2)),
        )


def _fuzzed(seed: float, value: Any) -> Any:
    return fuzz(value, random.Random(seed))
