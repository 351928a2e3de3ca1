"""Exports whose files are cut, mutated, nested, not finite, or of other types."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trials.base import Named, command, contents, copied

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
Damage = Callable[[Path], None]


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def trials() -> Iterator[Named]:
    for name, damage in DAMAGES.items():
        yield f"predict: {name}", _refused("predict", damage)
    yield "monitor: training features that are not finite", _refused("monitor", _reference(float("nan")))
    yield "monitor: training features that are cut", _refused("monitor", _cut("reference.safetensors"))


def _cut(name: str, share: float = 0.5) -> Damage:
    def damage(export: Path) -> None:
        whole = (export / name).read_bytes()
        (export / name).write_bytes(whole[: int(share * len(whole))])

    return damage


def _bytes(name: str, content: bytes) -> Damage:
    def damage(export: Path) -> None:
        (export / name).write_bytes(content)

    return damage


def _changed(name: str, **values: Any) -> Damage:
    def damage(export: Path) -> None:
        (export / name).write_text(json.dumps(json.loads((export / name).read_text()) | values))

    return damage


def _weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(export: Path) -> None:
        tensors = load_file(export / WEIGHTS)
        change(tensors)
        save_file(tensors, export / WEIGHTS)

    return damage


def _reference(value: float) -> Damage:
    def damage(export: Path) -> None:
        tensors = load_file(export / "reference.safetensors")
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
        tensors[name].view(-1)[0] = value
        save_file(tensors, export / "reference.safetensors")

    return damage


def _fill(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["classifier.bias"][0] = value

    return change


DEEP = b'{"id2label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
DAMAGES: dict[str, Damage] = {
    "config.json is cut": _cut(CONFIG),
    "config.json is deeply nested": _bytes(CONFIG, DEEP),
    "inspection.json is deeply nested": _bytes("inspection.json", DEEP),
    "config.json has a class too few": _changed(CONFIG, id2label={"0": "a", "2": "b"}),
    "config.json has images of no size": _changed(CONFIG, image_size=0),
    "the deviation of the pixels is 0": _changed(PROCESSOR, image_std=[0.2, 0.0, 0.2]),
    "the mean of the pixels is not finite": _changed(PROCESSOR, image_mean=[float("nan"), 0.5, 0.5]),
    "the mean of the pixels has two channels of three": _changed(PROCESSOR, image_mean=[0.5, 0.5]),
    "the weights are cut": _cut(WEIGHTS),
    "the weights are a pickle": _bytes(WEIGHTS, pickle.dumps(Bomb())),
    "a weight is not a number": _weights(_fill(float("nan"))),
    "a weight is infinite": _weights(_fill(float("inf"))),
}


def _refused(program: str, damage: Damage) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        copied(folder, "images", "export")
        damage(folder / "export")
        before = contents(folder)
        outcome = command(folder, program, "export", "images", "output=out.json")
        after = contents(folder)
        problems = outcome.problems(2)
        problems += [f"{name} is lost or changed" for name in before if before[name] != after.get(name)]
        problems += [
            f"{name} is left" for name in after if name not in before and not name.startswith((".out", ".err"))
        ]
        return [*problems, "code ran"] if (folder / "ran").exists() else problems

    return run
