"""suggest: the list, its reasons and its pictures; near copies once; also for an encoder; one line for wrong input."""

import csv

import numpy as np
import pytest
from exports import picture, write_model, write_pictures
from PIL import Image

from multilevel.__main__ import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, an encoder, and unlabelled images: clear ones, weak dents, and copies of one weak dent."""
    root = tmp_path_factory.mktemp("suggest")
    training = write_pictures(root / "training", {"good": 60, "dent": 60})
    write_model(root / "model", training, strength=1e3)
    write_model(root / "encoder", training, classifies=False)
    (root / "new").mkdir()
    random = np.random.default_rng(5)
    for number in range(40):
        picture(random, ("good", "dent")[number % 2]).save(root / "new" / f"clear{number:02d}.png")
    for number in range(10):
        picture(random, "dent", strength=45).save(root / "new" / f"weak{number}.png")
    for number in range(3):
        pixels = np.asarray(Image.open(root / "new" / "weak0.png")).astype(int) + number + 1
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / "new" / f"weak0copy{number}.png")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "a.png").write_bytes(b"no image")
    return root


def suggested(export, folder, output, *settings):
    status = main(["suggest", str(export), str(folder), f"output={output}", *settings])
    with output.open() as file:
        return status, list(csv.DictReader(file))


def test_uncertain_images_come_first_and_copies_once(place, tmp_path, capsys):
    status, rows = suggested(place / "model", place / "new", tmp_path / "list.csv", "count=10")
    assert status == 0
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 11)]
    margins = [float(row["probability"]) - float(row["next_probability"]) for row in rows if row["kind"] == "uncertain"]
    assert margins == sorted(margins)
    names = [row["file"].rpartition("/")[2] for row in rows]
    assert sum(name.startswith("weak0") for name in names) <= 1
    assert sum(name.startswith("weak") for name in names) >= 4  # a quarter of the folder
    assert any(row["reason"].startswith("uncertain between ") for row in rows)
    assert "10 of 53 images to label" in capsys.readouterr().out
    with Image.open(tmp_path / "list.png") as sheet:
        assert min(sheet.size) > 300


def test_all_images_are_listed_but_for_copies_if_the_folder_has_few(place, tmp_path):
    _, rows = suggested(place / "model", place / "new", tmp_path / "list.csv", "count=500")
    assert len(rows) == 50
    _, rows = suggested(place / "model", place / "new", tmp_path / "list.csv", "count=500", "near_copies=1")
    assert len(rows) == 53


def test_an_encoder_lists_unlike_images_and_says_so(place, tmp_path, capsys):
    status, rows = suggested(place / "encoder", place / "new", tmp_path / "list.csv", "count=6")
    assert status == 0
    assert len(rows) == 6
    assert {row["kind"] for row in rows} <= {"diverse", "unusual"}
    assert "the export has no classifier: images are listed for their diversity only" in capsys.readouterr().out


def test_one_broken_file_does_not_lose_the_others(place, tmp_path, capsys):
    broken = str(place / "broken" / "a.png")
    arguments = ["suggest", str(place / "model"), broken, str(place / "new"), f"output={tmp_path / 'a.csv'}", "count=5"]
    assert main(arguments) == 1
    assert f"{broken}: unreadable" in capsys.readouterr().err
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 6


WRONG = [
    (["{p}/model"], "an exported folder and images: multilevel suggest EXPORT FILE"),
    (["{p}/none", "{p}/new"], "EXPORT: got '{p}/none'"),
    (["{p}/model", "{p}/nowhere"], "FILE: got '{p}/nowhere'"),
    (["{p}/model", "{p}/empty"], "{p}/empty holds no images"),
    (["{p}/model", "{p}/broken"], "no file could be read as an image"),
    (["{p}/model", "{p}/new", "count=0"], "count: got 0; expected a whole number of at least 1"),
    (["{p}/model", "{p}/new", "near_copies=2"], "near_copies: got 2.0; expected"),
    (["{p}/model", "{p}/new", "output=a.png"], "output: got 'a.png'; expected a .csv file"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_input_ends_in_status_2(place, words, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["suggest", *(word.replace("{p}", str(place)) for word in words)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert text.replace("{p}", str(place)) in lines[-1]
    assert len(lines) == (2 if "{p}/broken" in words else 1)  # the broken file, by name
    assert list(tmp_path.iterdir()) == []
