"""Damaged files and folders of a run, and a stranger's files among them."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from trials.base import Named, TimedOutError, contents, ended, kind, start
from trials.checkpoints import started
from trials.structures import EVALUATE, EXPORT, RESUME, structures

Change = Callable[[Path], object]  # of a run folder
HUNG = 60  # seconds; a command takes one, and never ends if it reads a pipe that nothing writes to, or a bomb
MEMORY = 8 << 30  # bytes that it may take meanwhile
BOMB = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)  # 9^11 values


def write(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda run: (run / name).write_bytes(data)


def edit(name: str, change: Callable[[bytes], bytes]) -> Change:
    def apply(run: Path) -> None:
        content = (run / name).read_bytes()
        changed = change(content)
        assert changed != content
        (run / name).write_bytes(changed)

    return apply


def replace(name: str, old: bytes, new: bytes) -> Change:
    return edit(name, lambda content: content.replace(old, new, 1))


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Remove a file or folder, and make something else in its place."""

    def apply(run: Path) -> None:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        make(path)

    return apply


def moved(name: str) -> Change:
    """Move a file or folder elsewhere, and leave a link to it."""

    def apply(run: Path) -> None:
        elsewhere = run.parent / "elsewhere"
        elsewhere.mkdir()
        shutil.move(run / name, elsewhere / Path(name).name)
        (run / name).symlink_to(elsewhere / Path(name).name)

    return apply


def foreign(*names: str) -> Change:
    """A stranger's files among the checkpoints; a name that ends with / is a folder with a file."""

    def apply(run: Path) -> None:
        shutil.rmtree(run / "checkpoint" / "step-3")  # a step is left to do, and its checkpoint to write
        for name in names:
            path = run / "checkpoint" / name
            if name.endswith("/"):
                path.mkdir()
                path = path / "keep.txt"
            path.write_text("mine")

    return apply


def record(change: Callable[[dict[str, object]], object]) -> Change:
    """Change the record of the run's images."""

    def apply(run: Path) -> None:
        values = json.loads((run / "data.json").read_text())
        change(values)
        (run / "data.json").write_text(json.dumps(values))

    return apply


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


FIFO = os.mkfifo
CONFIG = [
    ("a setting of a newer version", edit("config.yaml", lambda old: old + b"\nnewer: {a: 1}\n"), (2,)),
    ("a newer setting of the data", replace("config.yaml", b"  hub: null", b"  hub: null\n  hue: 3"), (2,)),
    ("an unknown recipe", replace("config.yaml", b"recipe: guided_mae", b"recipe: guided_mea"), (2,)),
    ("steps as a text", replace("config.yaml", b"steps: 3", b"steps: three"), (2,)),
    ("steps as a list", replace("config.yaml", b"steps: 3", b"steps: [3]"), (2,)),
    ("a device without memory", replace("config.yaml", b"device: auto", b"device: meta"), (2,)),
    ("cut off in its middle", edit("config.yaml", lambda old: old[: len(old) // 2]), (2,)),
    ("not UTF-8", edit("config.yaml", lambda old: old + b"# caf\xe9\n"), (2,)),
    ("with a byte of zeros", edit("config.yaml", lambda old: old[:50] + b"\0" + old[51:]), (2,)),
    ("nested 20,000 deep", write("config.yaml", "a: " + "[" * 20_000 + "]" * 20_000), (2,)),
    ("aliases that grow without limit", write("config.yaml", BOMB), (2,)),
    ("a Python object", write("config.yaml", "!!python/object/apply:os.getcwd []"), (2,)),
    ("a list", write("config.yaml", "- steps\n- 3\n"), (2,)),
    ("empty", write("config.yaml", ""), (2,)),
    ("lines of Windows", edit("config.yaml", lambda old: old.replace(b"\n", b"\r\n")), (0,)),
    ("a comment and a document's beginning", edit("config.yaml", lambda old: b"# mine\n---\n" + old), (0,)),
    ("a pipe", instead("config.yaml", FIFO), (2,)),
    ("a folder", instead("config.yaml", Path.mkdir), (2,)),
    ("a link to itself", instead("config.yaml", loop), (2,)),
    ("a link to the file", moved("config.yaml"), (0,)),
]
METRICS = [
    ("a damaged byte", replace("metrics.jsonl", b'"loss"', b'"lo\xffs"'), (0,)),
    ("a line of zeros", edit("metrics.jsonl", lambda old: old + bytes(40) + b"\n"), (0,)),
    ("a last line half written", edit("metrics.jsonl", lambda old: old + b'{"level": "pre'), (0,)),
    ("a line nested 50,000 deep", edit("metrics.jsonl", lambda old: b"[" * 50_000 + b"\n" + old), (0,)),
    ("a line that is a number", edit("metrics.jsonl", lambda old: b"17\n" + old), (0,)),
    ("a step as a text", replace("metrics.jsonl", b'"step": 1', b'"step": "1"'), (0,)),
    ("a loss as a list", replace("metrics.jsonl", b'"loss": ', b'"loss": [], "before": '), (0,)),
    ("two lines as one", edit("metrics.jsonl", lambda old: old.replace(b"}\n{", b"}{", 1)), (0,)),
    ("a folder", instead("metrics.jsonl", Path.mkdir), (2,)),
    ("a pipe", instead("metrics.jsonl", FIFO), (2,)),
    ("a link to the file", moved("metrics.jsonl"), (0,)),
]
SUMMARY = [
    ("cut off", write("summary.json", '{"recipe": "gui'), EXPORT, (2,)),
    ("a list", write("summary.json", "[]"), EXPORT, (0, 2)),
    ("an evaluation of numbers", write("summary.json", '{"evaluation": [1], "levels": 2}'), EXPORT, (0, 2)),
    ("nested 50,000 deep", write("summary.json", "[" * 50_000 + "]" * 50_000), EXPORT, (2,)),
    ("a folder", instead("summary.json", Path.mkdir), EXPORT, (2,)),
]
DATA = [
    ("cut off", edit("data.json", lambda old: old[:100]), EXPORT, (2,)),
    ("empty mapping", write("data.json", "{}"), EVALUATE, (2,)),
    ("of a newer version", record(lambda values: values.update(version=99)), EVALUATE, (2,)),
    ("classes that do not exist", record(lambda values: values.update(class_names=["c", "d"])), EXPORT, (2,)),
    ("a mean as a text", record(lambda values: values.update(mean=["a", "b", "c"])), RESUME, (2,)),
    ("a mean that is not finite", record(lambda values: values.update(mean=[float("nan")] * 3)), EXPORT, (2,)),
    ("images as a number", record(lambda values: values.update(train=3)), RESUME, (2,)),
    ("a pipe", instead("data.json", FIFO), EVALUATE, (2,)),
]
FOLDERS = [
    ("file step-9.tar, folders step-best, step-9", foreign("step-9.tar", "step-best/", "step-9/"), RESUME, (0,)),
    ("files step-3 and step-10", foreign("step-3", "step-10"), RESUME, (0,)),
    ("folders with other digits", foreign("step-٣/", "step-03/", "step-1e3/", "step-+3/"), RESUME, (0,)),
    ("checkpoints elsewhere, by a link", moved("checkpoint"), RESUME, (0,)),
    ("a file in place of checkpoints", instead("checkpoint", Path.touch), EVALUATE, (2,)),
    ("a link to nothing in place of checkpoints", instead("checkpoint", dangling), EXPORT, (2,)),
]  # fmt: skip


def hung(folder: Path, words: list[str]) -> list[str]:
    limits = (MEMORY, resource.RLIM_INFINITY)
    process = start(folder, *words, before=lambda _: resource.setrlimit(resource.RLIMIT_AS, limits))
    try:
        return ended(process, folder, HUNG).problems(2)
    except TimedOutError:
        return [f"has not ended after {HUNG} s"]


def attempt(change: Change, words: list[str], statuses: tuple[int, ...], folder: Path) -> list[str]:
    """Damage a run and use it: what was there is still there, or else it is what the command writes itself."""
    run = started(folder)
    change(run)
    before = contents(folder)
    if any(path.is_fifo() for path in run.iterdir()) or BOMB.encode() in before.values():
        problems, status = hung(folder, words), 2
    else:
        outcome = ended(start(folder, *words), folder)
        problems, status = outcome.problems(*statuses), outcome.status
    after = contents(folder)
    lost = {name: content for name, content in before.items() if after.get(name) != content}
    if status != 2:  # pictures are drawn again; a damaged log is replaced, and kept under another name
        written = ("run/curves.png", "run/masks.png", "run/data.json", "run/checkpoint/step-2/", "elsewhere/")
        kept = {line for name, content in after.items() if name.startswith("run/metrics") for line in lines(content)}
        lost = {
            name: content
            for name, content in lost.items()
            if not name.startswith(written) and (name != "run/metrics.jsonl" or lines(content) - kept)
        }
    own = {name for name in lost if name in (".out", ".err")}
    return problems + [f"{name} is lost or changed" for name in lost if name not in own]


def lines(content: bytes) -> set[bytes]:
    """The whole lines of a log, without times."""
    return set(re.sub(rb', "seconds": [0-9.]+', b"", content).split(b"\n")[:-1])


@kind("checkpoint structures with fitting digests; damaged config, metrics, summary, data.json, folders, links")
def damage(generator: random.Random) -> Iterator[Named]:
    yield from structures(generator)
    commands = (RESUME, EVALUATE, EXPORT)
    for number, (name, change, statuses) in enumerate(CONFIG):
        words = commands[number % 3]
        yield f"config.yaml: {name}, {words[0]}", partial(attempt, change, words, statuses)
    for name, change, statuses in METRICS:
        yield f"metrics.jsonl: {name}", partial(attempt, change, RESUME, statuses)
    for file, cases in (("summary.json", SUMMARY), ("data.json", DATA), ("folders", FOLDERS)):
        for name, change, words, statuses in cases:
            yield f"{file}: {name}", partial(attempt, change, words, statuses)
