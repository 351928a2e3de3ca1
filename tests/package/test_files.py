"""What commands write: whole or not at all, never in place of an input, a device or somebody's file."""

import csv
import json
import os
import resource
import shutil
import stat
import subprocess
import sys

import pytest
from exports import write_model, write_pictures
from PIL import Image

from multilevel.__main__ import main
from multilevel.solvers.files import write_together, write_whole

LATIN = os.fsdecode(b"caf\xe9.png")  # not UTF-8


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """An export, and a folder of images with a class each."""
    folder = tmp_path_factory.mktemp("line")
    images = write_pictures(folder / "images", {"good": 8, "dent": 8})
    write_model(folder / "export", images)
    (images / "good" / "000.png").rename(images / "good" / LATIN)
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_a_new_file_has_the_permissions_of_the_umask_and_an_old_one_keeps_its_own(tmp_path, mask):
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o640)
    before = os.umask(mask)
    try:
        for name in ("old", "new"):
            write_whole(tmp_path / name, "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640


def test_links_stay_links(tmp_path):
    (tmp_path / "file").write_text("a longer text than the next")
    os.link(tmp_path / "file", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("file")
    (tmp_path / "dangling").symlink_to("new")
    for number, name in enumerate(["hard", "soft"]):
        write_whole(tmp_path / name, str(number))
        assert {(tmp_path / path).read_text() for path in ("file", "hard", "soft")} == {str(number)}
    write_whole(tmp_path / "dangling", "2")
    assert (tmp_path / "new").read_text() == "2"
    assert (tmp_path / "soft").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert os.path.samefile(tmp_path / "file", tmp_path / "hard")
    assert len(list(tmp_path.iterdir())) == 5


def test_a_pipe_gets_the_contents(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    write_whole(tmp_path / "pipe", "täxt")
    assert reader.communicate()[0] == "täxt".encode()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_all_files_are_written_or_none(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    os.link(tmp_path / "b", tmp_path / "c")  # b is overwritten in its place
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for big in ("a", "b"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                write_together({tmp_path / name: bytes(2000 if name == big else 10) for name in ("a", "b")})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("abc", "old")


@pytest.mark.parametrize("command", ["predict", "monitor", "suggest", "inspect"])
def test_no_command_writes_over_what_it_reads(line, tmp_path, capsys, command, monkeypatch):
    monkeypatch.chdir(line)
    image = next(path for path in (line / "images" / "dent").iterdir())
    suffix = {"monitor": ".json", "suggest": ".csv", "inspect": ".html"}.get(command, ".png")
    (tmp_path / f"hard{suffix}").hardlink_to(image)
    (tmp_path / f"soft{suffix}").symlink_to(image)
    outputs = [tmp_path / f"hard{suffix}", tmp_path / f"soft{suffix}", line / "export" / f"config{suffix}"]
    if command != "inspect":  # whose second file is a .json
        outputs += [f"images/../images/dent/{image.stem}{suffix}"]
    before = contents(line)
    for output in outputs:
        assert main([command, "export", "images", f"output={output}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("multilevel: output: got ")
        assert said.count("\n") == 1
    assert contents(line) == before


def test_a_second_file_is_replaced_only_if_an_earlier_run_wrote_it(line, tmp_path, capsys):
    request = ["monitor", str(line / "export"), str(line / "images"), f"output={tmp_path / 'day.json'}"]
    Image.new("L", (4, 4)).save(tmp_path / "day.png")
    before = (tmp_path / "day.png").read_bytes()
    assert main(request) == 2
    assert "day.png, which is not by this command" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["day.png"]
    assert (tmp_path / "day.png").read_bytes() == before
    (tmp_path / "day.png").unlink()
    assert {main(request), main(request)} <= {0, 3, 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["day.json", "day.png"]


def test_a_name_that_is_not_utf8_costs_nothing(line, tmp_path, capsys):
    for command, name in (("predict", "p.csv"), ("suggest", "s.csv"), ("monitor", "m.json"), ("inspect", "i.html")):
        assert main([command, str(line / "export"), str(line / "images"), f"output={tmp_path / name}"]) in (0, 3, 4)
    for name in ("p.csv", "s.csv", "i.json"):
        assert r"caf\xe9.png" in (tmp_path / name).read_text(encoding="utf-8").replace(r"\\", "\\")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 16


def test_a_name_with_a_line_break_stays_in_one_cell(line, tmp_path):
    for name in ("a\rb.png", "a\nb.png", "a\r\nb.png"):
        shutil.copy(line / "images" / "good" / "001.png", tmp_path / name)
    for command, output in (("predict", "p.csv"), ("predict", "excel.csv"), ("suggest", "s.csv")):
        options = ["csv=excel"] if output == "excel.csv" else []
        assert main([command, str(line / "export"), str(tmp_path), f"output={tmp_path / output}", *options]) == 0
    for output in ("p.csv", "excel.csv"):
        with (tmp_path / output).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        assert {os.path.basename(row["file"]) for row in rows} == {"a\rb.png", "a\nb.png", "a\r\nb.png"}
        assert len(rows) == 3


def test_standard_output_that_is_a_file_is_written_to(line, tmp_path):
    """Its inode stays, nothing else is in it, and what it cannot encode is escaped."""
    target = tmp_path / "p.csv"
    target.touch()
    inode = target.stat().st_ino
    command = [sys.executable, "-m", "multilevel", "predict", line / "export", line / "images", "output=/dev/stdout"]
    with target.open("wb") as file:
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        ended = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert target.stat().st_ino == inode
    lines = target.read_bytes().splitlines()
    assert len(lines) == 1 + 16
    assert lines[0].startswith(b"file,label")


@pytest.mark.parametrize("name", ["missing/" * 3 + "p.csv", "x" * 300, "export/p.csv", "images/good"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(line, capsys, monkeypatch, name):
    monkeypatch.chdir(line)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only disk
    before = contents(line)
    assert main(["predict", "export", "images", f"output={name}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(line) == before


def test_a_full_disk_leaves_the_earlier_file(line, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert main(["predict", str(line / "export"), str(line / "images"), f"output={tmp_path / 'p.csv'}"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_pipes_as_images_and_devices_that_compute_nothing_are_refused(line, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    assert main(["predict", str(line / "export"), str(tmp_path / "pipe.png")]) == 2
    assert main(["predict", str(line / "export"), str(line / "images"), "device=meta"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_numbers_nested_deeply_are_refused_in_one_line(line, tmp_path, capsys):
    broken = tmp_path / "export"
    broken.mkdir()
    for path in (line / "export").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    assert json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text("[" * 100_000)
    assert main(["predict", str(broken), str(line / "images")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
