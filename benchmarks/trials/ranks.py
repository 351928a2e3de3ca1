"""Two ranks, started by hand, that differ, of which one fails, or that are alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from PIL import Image

from trials.base import TINY, Named, Outcome, TimedOutError, command, ended, kind, start, write_images

SETTINGS = [*TINY, "evaluate=false"]
SECONDS = 120  # a pair takes a few when nothing else runs
LONG = ["steps=400", "checkpoint.every=5"]
Change = Callable[[Path], object]


@kind("ranks")
def trials(random: Random) -> Iterator[Named]:
    for name, settings in SETTING_PAIRS.items():
        yield f"ranks that differ in {name}", _settings(settings)
    yield "ranks that differ in a version", _version
    for name, change in DATA.items():
        yield f"ranks that differ in {name}", _data(change)
    yield "ranks that differ in the division", _division
    yield "a port that is taken", _port
    yield "a data folder that one rank lacks", _settings(["data.path=../missing"])
    yield "a setting that one rank alone cannot read", _settings(["steps=many"])
    yield "an image that breaks on one rank in training", _breaks
    yield "a rank that is killed", _killed
    yield "a rank that is stopped and continued", _paused
    yield "a rank with SIGTERM, then one process resumes", _terminated
    yield "a pair", _pair
    yield "a pair with the images in two places", _two_places


SETTING_PAIRS = {"a setting": ["mask.ratio=0.5"], "the seed": ["seed=1"]}


def launch(folder: Path, rank: int, port: int, *settings: str, before: Callable[[Path], None] | None = None) -> int:
    """Start a rank, with the images of ``folder / RANK`` and the run in ``folder / run``."""
    place = folder / str(rank)
    place.mkdir(exist_ok=True)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    environment = {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    words = [*SETTINGS, "data.path=images", "output=../run", *settings]
    return start(place, "train", *words, environment=environment, before=before)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def outcomes(folder: Path, processes: Sequence[int]) -> tuple[list[Outcome], list[str]]:
    """How the ranks ended, and a problem if one has not in time."""
    ends, problems = [], []
    for rank, process in enumerate(processes):
        try:
            ends.append(ended(process, folder / str(rank), SECONDS))
        except TimedOutError:
            problems.append(f"rank {rank} has not ended after {SECONDS} s")
    return ends, problems


def refused(ends: Sequence[Outcome], word: str = "") -> list[str]:
    """What is wrong with the end of ranks that must all be refused, in lines that have a word."""
    problems = [problem for end in ends for problem in end.problems(2) if "without a line" not in problem]
    said = [line for end in ends for line in end.err.splitlines() if line.startswith("multilevel: ")]
    if not any(word in line for line in said):
        problems.append(f"no line names {word!r}: {said}")
    return problems


def _images(folder: Path, ranks: Sequence[int] = (0, 1)) -> None:
    write_images(folder / "0" / "images")
    if 1 in ranks:
        shutil.copytree(folder / "0" / "images", folder / "1" / "images")


def _differ(
    folder: Path,
    word: str,
    first: Sequence[str] = (),
    second: Sequence[str] = (),
    before: Callable[[Path], None] | None = None,
) -> list[str]:
    port = free_port()
    processes = [launch(folder, 0, port, *first), launch(folder, 1, port, *second, before=before)]
    ends, problems = outcomes(folder, processes)
    left = [f"{path.name} is left" for path in (folder / "run").glob("metrics.jsonl")]
    return problems + refused(ends, word) + left


def _settings(settings: Sequence[str]) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        _images(folder)
        return _differ(folder, settings[0].partition("=")[0], second=settings)

    return run


def _version(folder: Path) -> list[str]:
    _images(folder)
    other = folder / "packages" / "numpy-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    return _differ(folder, "numpy", before=lambda place: sys.path.insert(0, str(other.parent)))


def _another_pixel(images: Path) -> None:
    """Images without compression, of the same size in bytes whatever the pixels."""
    for place in (images, images.parent.parent / "0" / "images"):
        for file in place.rglob("*.png"):
            Image.open(file).save(file.with_suffix(".bmp"))
            file.unlink()
    with Image.open(images / "a" / "003.bmp") as picture:
        picture.putpixel((3, 3), (1, 2, 3))
        picture.save(images / "a" / "003.bmp")


def _swap_labels(images: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (images / name / "004.png").rename(images / other / f"of-{name}.png")


DATA: dict[str, Change] = {
    "a file that one has": lambda images: shutil.copy(images / "a" / "000.png", images / "a" / "new.png"),
    "the name of a file": lambda images: (images / "b" / "004.png").rename(images / "b" / "x.png"),
    "two labels": _swap_labels,
    "the name of a class": lambda images: (images / "b").rename(images / "c"),
    "a pixel": _another_pixel,
}


def _data(change: Change) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        _images(folder)
        change(folder / "1" / "images")
        return _differ(folder, "ranks differ")

    return run


def _division(folder: Path) -> list[str]:
    _images(folder)
    trained = command(folder, "train", *SETTINGS, "data.path=0/images", "steps=1", "output=first")
    record = json.loads((folder / "first" / "data.json").read_text())
    parts = record["train"]["parts"]
    record["train"]["parts"] = parts.translate(str.maketrans("ft", "tf"))
    (folder / "other.json").write_text(json.dumps(record))
    settings = ["data.division=../first/data.json"], ["data.division=../other.json"]
    return trained.problems(0) + _differ(folder, "ranks differ", *settings)


def _port(folder: Path) -> list[str]:
    _images(folder, ranks=[0])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ends, problems = outcomes(folder, [launch(folder, 0, listener.getsockname()[1])])
    return problems + refused(ends, "port")


def _training(folder: Path, *settings: str) -> list[int]:
    """Two ranks that have made their first updates."""
    _images(folder)
    port = free_port()
    processes = [launch(folder, rank, port, *settings) for rank in (0, 1)]
    metrics, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + SECONDS
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_bytes().count(b"\n") > 5):
        time.sleep(0.02)
    return processes


def _breaks(folder: Path) -> list[str]:
    processes = _training(folder, *LONG, "data.memory_gib=0")
    for file in (folder / "1" / "images").rglob("*.png"):
        file.write_bytes(b"broken")
    ends, problems = outcomes(folder, processes)
    return problems + refused(ends, ".png")


def _killed(folder: Path) -> list[str]:
    processes = _training(folder, *LONG)
    os.kill(processes[1], signal.SIGKILL)
    ends, problems = outcomes(folder, processes)
    return problems + refused(ends[:1], "rank")


def _paused(folder: Path) -> list[str]:
    processes = _training(folder, "steps=30")
    os.kill(processes[1], signal.SIGSTOP)
    time.sleep(3)
    os.kill(processes[1], signal.SIGCONT)
    return _ended_well(folder, processes)


def _ended_well(folder: Path, processes: Sequence[int]) -> list[str]:
    ends, problems = outcomes(folder, processes)
    problems += [problem for end in ends for problem in end.problems(0)]
    return problems if (folder / "run" / "summary.json").exists() else [*problems, "no summary"]


def _terminated(folder: Path) -> list[str]:
    processes = _training(folder, *LONG)
    os.kill(processes[1], signal.SIGTERM)
    ends, problems = outcomes(folder, processes)
    problems += [problem for end in ends for problem in end.problems(143)]
    saved = sorted(path.name for path in (folder / "run" / "checkpoint").glob("step-*"))
    if not saved:
        return [*problems, "no checkpoint"]
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 400", f"steps: {int(saved[-1].split('-')[1]) + 1}"))
    resumed = command(folder, "train", "resume=run", f"data.path={folder / '0' / 'images'}")
    return problems + resumed.problems(0)


def _pair(folder: Path) -> list[str]:
    _images(folder, ranks=[0])
    port = free_port()
    (folder / "1").mkdir()
    (folder / "1" / "images").symlink_to("../0/images")
    return _ended_well(folder, [launch(folder, rank, port) for rank in (0, 1)])


def _two_places(folder: Path) -> list[str]:
    _images(folder)
    port = free_port()
    return _ended_well(folder, [launch(folder, rank, port) for rank in (0, 1)])
