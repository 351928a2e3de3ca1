"""Images that metadata.csv or metadata.jsonl describes, compared with what datasets' imagefolder reads."""

from __future__ import annotations

import json

import datasets
import pytest

from multilevel.recipes.data import load_data
from multilevel.solvers.errors import DataError, SettingError

FILES = [f"{number}.png" for number in range(20)]
KINDS = ["007" if number % 2 else "7" for number in range(20)]


def described(root, kinds, kind="csv", column="label", prefix=""):
    """Write the labels of the files 0.png, 1.png, ..."""
    rows = [{"file_name": f"{prefix}{number}.png", column: value} for number, value in enumerate(kinds)]
    if kind == "csv":
        text = "\n".join([f"file_name,{column}", *(",".join(row.values()) for row in rows)])
    else:
        text = "\n".join(map(json.dumps, rows))
    (root / f"metadata.{kind}").write_text(text + "\n")
    return root


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("below", ["", "images/"])
def test_labels_are_those_of_the_file(folder, settings, numbers, kind, below):
    root = described(folder([below + file for file in FILES]), KINDS, kind, prefix=below)
    data = load_data(settings(path=str(root)))
    assert data.class_names == ("007", "7")
    for part in (data.train, data.test):
        assert [data.class_names[label] for label in part.labels] == [KINDS[number] for number in numbers(part)]


def test_splits_and_labels_are_those_of_imagefolder(folder, settings, numbers):
    root = folder([f"{split}/{file}" for split in ("training", "valid") for file in FILES])
    for split in ("training", "valid"):
        described(root / split, [f"kind {number % 2}" for number in range(20)])
    data = load_data(settings(path=str(root)))
    read = datasets.load_dataset("imagefolder", data_dir=str(root))
    for part, name in ((data.train, "train"), (data.test, "validation")):
        ours = sorted(zip(numbers(part), [data.class_names[label] for label in part.labels], strict=True))
        first = [picture.getpixel((0, 0)) for picture in read[name]["image"]]
        assert ours == sorted(zip([red + 256 * green for red, green, _ in first], read[name]["label"], strict=True))


def test_one_file_for_both_splits(folder, settings, numbers):
    root = folder([f"{split}/{number}.png" for split in ("train", "test") for number in range(10)])
    rows = [f"{split}/{number}.png,{'ab'[number % 2]}" for split in ("train", "test") for number in range(10)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    data = load_data(settings(path=str(root)))
    assert sorted(numbers(data.train)) == list(range(10))
    assert sorted(zip(numbers(data.test), data.test.labels.tolist(), strict=True)) == [
        (10 + n, n % 2) for n in range(10)
    ]


def test_labels_of_folders_and_of_the_file_are_not_mixed_up(folder, settings):
    root = folder([f"{name}/{file}" for name in ("a", "b") for file in FILES])
    rows = [f"{name}/{file},{'x' if name == 'b' else 'y'}" for name in ("a", "b") for file in FILES]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    with pytest.raises(SettingError, match=r"data\.label_column: got None; expected .*such as label.*folders a, b"):
        load_data(settings(path=str(root)))
    assert load_data(settings(path=str(root), label_column="label")).class_names == ("x", "y")
    (root / "metadata.csv").write_text("when,who\nMonday,me\n")
    assert load_data(settings(path=str(root))).class_names == ("a", "b")


@pytest.mark.parametrize("name", ["missing.png", "../outside.png"])
def test_file_that_is_missing_or_outside(folder, settings, tmp_path, picture, name):
    root = folder(FILES)
    picture(0).save(tmp_path / "outside.png")
    (root / "metadata.csv").write_text(f"file_name,label\n0.png,a\n{name},b\n")
    with pytest.raises(DataError, match=r"row 1 of .*metadata\.csv names .*expected a file in"):
        load_data(settings(path=str(root)))


def test_images_that_it_does_not_name_are_counted(folder, settings):
    root = described(folder([*FILES, "extra.png"]), KINDS)
    assert "metadata.csv: 1 images that it does not name are not read" in load_data(settings(path=str(root))).notes
