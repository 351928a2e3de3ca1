"""Checkpoints with a flipped bit or a part that is missing: refused, or the one before is used, which is said."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from trials.base import SCRATCH, TINY, Named, command, contents, finished, kind
from trials.kills import differences, newest

FILES = ("weights.safetensors", "state.safetensors", "state.json", "digests.json")
SETTINGS = [*TINY, "steps=3", "evaluate=false", "data.path=images", "output=run"]


@cache
def whole() -> Path:
    """A folder with images and a run that ended, with checkpoints of its last two steps."""
    folder = SCRATCH[0] / "checkpoints"
    shutil.copytree(finished() / "images", folder / "images")
    outcome = command(folder, "train", *SETTINGS)
    assert outcome.status == 0, outcome.err
    return folder


def started(folder: Path) -> Path:
    """The same run as if it had been killed before its summary, in a folder of a trial."""
    for name in ("images", "run"):
        shutil.copytree(whole() / name, folder / name)
    (folder / "run" / "summary.json").unlink()
    return folder / "run"


def damaged(content: bytes, how: str, place: float) -> bytes:
    """A content with one flipped bit, cut off, without some bytes in its middle, or with bytes of zeros."""
    at = int(place * len(content))
    if how == "flip":
        bit = int(place * 8 * len(content))
        return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
    if how == "cut":
        return content[:at]
    if how == "hole":
        return content[:at] + content[at + 1 + len(content) // 50 :]
    if how == "more":
        return content + content[at:]
    zeros = bytes(min(512, len(content) - at))
    return content[:at] + zeros + content[at + len(zeros) :]


def damage(file: str, how: str, place: float, all_of_them: bool, folder: Path) -> list[str]:
    run = started(folder)
    last = newest(run)
    assert last is not None
    for checkpoint in run.glob("checkpoint/step-*") if all_of_them else [last]:
        content = (checkpoint / file).read_bytes()
        changed = damaged(content, how, place)
        (checkpoint / file).write_bytes(changed)
        assert changed != content
    before = contents(run)
    outcome = command(folder, "train", "resume=run")
    if all_of_them:
        problems = outcome.problems(2)
        if file != "digests.json" and file not in outcome.err:  # its flips damage any file's digest
            problems.append("the damaged file is not named")
        lost = [name for name, content in before.items() if contents(run).get(name) != content]
        return [*problems, *(f"{name} is lost or changed" for name in lost)]
    problems = outcome.problems(0)
    if "using step-2 instead" not in outcome.out + outcome.err:
        problems.append("the damaged checkpoint is not reported")
    return problems or differences(run, whole() / "run")


@kind("checkpoint: bit flips and cuts")
def flips(generator: random.Random) -> Iterator[Named]:
    for number in range(200):
        file = FILES[number % 4]
        how = ("flip", "flip", "cut", "hole", "zeros", "more")[number // 4 % 6]
        place, all_of_them = round(generator.uniform(0, 0.995), 4), number % 8 < 4
        if how == "zeros" and file == "state.json":
            how = "flip"
        which = "both checkpoints" if all_of_them else "the newest checkpoint"
        yield f"{number}: {how} at {place} of {file} of {which}", partial(damage, file, how, place, all_of_them)
