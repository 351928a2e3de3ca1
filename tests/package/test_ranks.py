"""Ranks that differ, or of which one fails, end in one line that names the difference."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "evaluate=false", "steps=1",
]  # fmt: skip
DIGITS = ["data.batch_size=16", "data.limit=200"]
FOLDER = ["data=folder", "data.image_size=8", "data.patch_size=4", "data.batch_size=4"]
OTHER_VERSION = """
import importlib.metadata, sys
from multilevel.runs import distributed
distributed.version = lambda name: "0.1" if name == "torch" else importlib.metadata.version(name)
from multilevel.__main__ import main
sys.exit(main())
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(folder: Path, port: int, rank: int, program: list[str], settings: list[str]) -> subprocess.Popen[str]:
    """One rank, as torchrun or a cluster starts it."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, "train", *TINY, *settings, "output=run"]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **place, **numbers}, stderr=subprocess.PIPE, text=True
    )


def ends(folder: Path, *settings: list[str], programs: tuple[list[str], ...] = ()) -> list[str]:
    """Lines that two ranks with these settings print; both must end with status 2."""
    port = free_port()
    programs = programs or (["-m", "multilevel"],) * 2
    ranks = [start(folder, port, rank, programs[rank], settings[rank]) for rank in range(2)]
    lines = []
    for rank in ranks:
        said = rank.communicate()[1]
        assert rank.returncode == 2, said
        assert "Traceback" not in said
        lines += [line for line in said.splitlines() if line.startswith("multilevel:")]
    assert not (folder / "run" / "metrics.jsonl").exists()
    return lines


def write_folder(root: Path, first: int = 0) -> Path:
    generator = np.random.default_rng(0)
    for name in ("dent", "good"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
            pixels[0, 0] = first if number == 0 else pixels[0, 0]
            Image.fromarray(pixels).save(root / name / f"{number}.bmp")  # of the same size whatever the pixels
    return root


@pytest.mark.parametrize(("setting", "name"), [("seed=1", "seed"), ("data.limit=190", "data.limit")])
def test_settings_that_differ(tmp_path: Path, setting: str, name: str) -> None:
    (line,) = ends(tmp_path, DIGITS, [*DIGITS, setting])
    assert line.startswith(f"multilevel: the ranks differ: {name} is ")
    assert f"{setting.partition('=')[2]} on rank 1" in line


def test_versions_that_differ(tmp_path: Path) -> None:
    (line,) = ends(tmp_path, DIGITS, DIGITS, programs=(["-m", "multilevel"], ["-c", OTHER_VERSION]))
    assert line.endswith("and 0.1 on rank 1")


@pytest.mark.parametrize("difference", ["a name", "a pixel"])
def test_data_that_differ(tmp_path: Path, difference: str) -> None:
    write_folder(tmp_path / "first")
    second = write_folder(tmp_path / "second", first=9 if difference == "a pixel" else 0)
    if difference == "a name":
        (second / "good" / "3.bmp").rename(second / "good" / "33.bmp")
    first, other = ([*FOLDER, f"data.path={tmp_path / name}"] for name in ("first", "second"))
    lines = ends(tmp_path, first, other)
    assert all("the ranks differ in their data" in line for line in lines)
    assert ("good/3.bmp" if difference == "a name" else "dent/0.bmp") in lines[0]


def test_one_folder_in_two_places_is_the_same_data(tmp_path: Path) -> None:
    write_folder(tmp_path / "first")
    write_folder(tmp_path / "second")
    port = free_port()
    programs = [["-m", "multilevel"]] * 2
    settings = [[*FOLDER, f"data.path={tmp_path / name}"] for name in ("first", "second")]
    ranks = [start(tmp_path, port, rank, programs[rank], settings[rank]) for rank in range(2)]
    for rank in ranks:
        said = rank.communicate()[1]
        assert rank.returncode == 0, said


def test_a_setting_that_one_rank_alone_cannot_use(tmp_path: Path) -> None:
    write_folder(tmp_path / "first")
    first, second = ([*FOLDER, f"data.path={tmp_path / name}"] for name in ("first", "missing"))
    (line,) = ends(tmp_path, first, second)
    assert line.startswith("multilevel: only on rank 1: data.path: got ")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        rank = start(tmp_path, listener.getsockname()[1], 0, ["-m", "multilevel"], DIGITS)
        said = rank.communicate()[1]
    assert rank.returncode == 2
    assert said.splitlines()[-1].startswith("multilevel: the ranks cannot connect at 127.0.0.1:")
    assert "Traceback" not in said


@pytest.mark.slow  # it waits a minute
def test_a_rank_that_never_answers(tmp_path: Path) -> None:
    """The other one has waited a minute, the least that can be set, and says how to wait longer."""
    port = free_port()
    silent = [sys.executable, "-c", _SILENT.format(port=port)]
    with subprocess.Popen(silent, stdout=subprocess.PIPE) as other:
        rank = start(tmp_path, port, 0, ["-m", "multilevel"], [*DIGITS, "rank_minutes=1"])
        killer = threading.Timer(600, rank.kill)
        killer.start()
        said = rank.communicate()[1]
        killer.cancel()
        other.kill()
    assert rank.returncode == 2
    assert "rank_minutes=N waits longer" in said.splitlines()[-1]


_SILENT = """
import datetime, time, torch.distributed as dist
from torch.distributed import TCPStore, PrefixStore
store = PrefixStore("start-0", TCPStore("127.0.0.1", {port}, 2, False))
dist.init_process_group("gloo", store=store, rank=1, world_size=2, timeout=datetime.timedelta(minutes=30))
time.sleep(10**6)
"""
