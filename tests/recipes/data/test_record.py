"""The record of a run's images: the same images are used in the same way again, and others are refused by name."""

import json
import shutil

import pytest
import torch

from multilevel.recipes.data import load_data
from multilevel.solvers import DataError, SettingError

PARTS = ("pretrain", "finetune", "mask", "train", "validation", "test")
FILES = [f"{name}/{number}.png" for name in ("ant", "bee", "cow") for number in range(10)]


@pytest.fixture
def recorded(folder, settings, tmp_path):
    """A folder of images, and settings that use the record of its first division."""
    root = folder([*FILES, "unlabelled/0.png"])
    usual = {"path": str(root), "validation_share": 0.2}
    data = load_data(settings(**usual))
    path = tmp_path / "data.json"
    path.write_text(data.record().text())
    return root, data, lambda **changes: settings(**{**usual, "division": str(path), **changes})


def names(data, part):
    split = getattr(data, part)
    return [split.images.source.names[row] for row in split.indices.tolist()]


def test_the_record_gives_the_same_parts_labels_and_statistics(recorded):
    _, data, again = recorded
    other = load_data(again(split_seed=7, validation_share=0.0, near_copies="keep"))
    for part in PARTS:
        assert names(other, part) == names(data, part)
        assert torch.equal(getattr(other, part).labels, getattr(data, part).labels)
    assert torch.equal(other.mean, data.mean)
    assert torch.equal(other.std, data.std)
    assert other.record() == data.record()


def test_the_same_files_at_another_place_are_accepted(recorded, tmp_path):
    root, data, again = recorded
    shutil.copytree(root, tmp_path / "moved")
    shutil.rmtree(root)
    assert names(load_data(again(path=str(tmp_path / "moved"))), "test") == names(data, "test")


CHANGES = {
    "removed": (lambda root: (root / "bee" / "3.png").unlink(), r"bee/3\.png is missing"),
    "added": (lambda root: shutil.copy(root / "bee" / "3.png", root / "ant" / "new.png"), r"ant/new\.png is new since"),
    "grown": (lambda root: (root / "cow" / "0.png").open("ab").write(b"x"), r"cow/0\.png has changed since the run;"),
    "renamed": (lambda root: (root / "ant").rename(root / "wasp"), "class 'ant' is missing and 'wasp' is new"),
    "emptied": (lambda root: shutil.rmtree(root / "cow"), "class 'cow' is missing"),
    "extended": (lambda root: shutil.copytree(root / "ant", root / "eel"), "the class 'eel' is new since the run"),
    "moved to another class": (
        lambda root: (root / "ant" / "1.png").rename(root / "bee" / "11.png"),
        "ant/1.png is missing",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_refused_by_the_first_that_differs(recorded, change):
    root, _, again = recorded
    alter, message = CHANGES[change]
    alter(root)
    with pytest.raises(DataError, match=message):
        load_data(again())


def test_another_picture_of_equal_size_is_refused_as_it_is_read(recorded):
    root, data, again = recorded
    name = names(data, "train")[0]
    file = root / name
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=rf"{name} has changed since the run; restore it, or set data.changed=accept"):
        load_data(again())


def test_accepted_changes_keep_classes_and_division(recorded):
    root, data, again = recorded
    (root / "ant").rename(root / "wasp")  # its images count as gone, and those of wasp as new
    (root / "bee" / "0.png").unlink()
    shutil.copy(root / "cow" / "1.png", root / "bee" / "new.png")
    other = load_data(again(changed="accept"))
    assert other.class_names == ("ant", "bee", "cow")
    for part in PARTS:
        kept = [name for name in names(data, part) if name[:3] != "ant" and name != "bee/0.png"]
        assert names(other, part) == kept
        assert getattr(other, part).labels.tolist() == [{"bee": 1, "cow": 2}.get(name[:3], -1) for name in kept]


def test_labels_are_recorded_by_class_name(parquet, settings, tmp_path):
    import datasets

    labels = [row % 3 for row in range(30)]
    data = load_data(settings(path=str(parquet("train", labels))))
    path = tmp_path / "data.json"
    path.write_text(data.record().text())
    reordered = datasets.ClassLabel(names=["cow", "ant", "bee"])
    root = parquet("train", [(label + 1) % 3 for label in labels], kind=reordered)
    other = load_data(settings(path=str(root), division=str(path)))
    assert other.class_names == ("ant", "bee", "cow")
    assert other.train.labels.tolist() == data.train.labels.tolist()
    labels[4] = 0
    root = parquet("train", labels)
    with pytest.raises(DataError, match=r"row 4 of .* is of class 'ant', in the run of class 'bee'"):
        load_data(settings(path=str(root), division=str(path)))


def test_a_given_test_split_is_recorded_too(folder, settings, tmp_path):
    root = folder([*(f"train/{name}" for name in FILES), *(f"test/{name}" for name in FILES[::5])])
    path = tmp_path / "data.json"
    path.write_text(load_data(settings(path=str(root))).record().text())
    (root / "test" / "bee" / "0.png").unlink()
    with pytest.raises(DataError, match=r"test/bee/0\.png is missing"):
        load_data(settings(path=str(root), division=str(path)))
    shutil.rmtree(root / "test")
    with pytest.raises(DataError, match="has no test split, unlike the run's images"):
        load_data(settings(path=str(root), division=str(path)))


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', "missing"])
def test_a_broken_record_is_named(folder, settings, tmp_path, text):
    path = tmp_path / "data.json"
    if text != "missing":
        path.write_text(text)
    with pytest.raises(
        SettingError,
        match=r"data\.division: got '.*data\.json'; expected the data\.json of a run \((No such file|not in its)",
    ):
        load_data(settings(path=str(folder(FILES)), division=str(path)))


def test_a_record_of_a_later_version_is_refused(recorded, tmp_path):
    _, _, again = recorded
    path = tmp_path / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(SettingError, match="a file of version 1, not 2"):
        load_data(again())
