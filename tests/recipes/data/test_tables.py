from __future__ import annotations

import datasets
import pytest
import torch

from multilevel.recipes.data import load_data
from multilevel.solvers.errors import DataError, SettingError

LABELS = [row % 3 for row in range(30)]


def test_columns_are_found_by_their_features(parquet, settings, numbers):
    masks = {"mask": (datasets.Image(), [None] * 30)}
    data = load_data(settings(path=str(parquet("train", LABELS, extra=masks))))
    assert data.class_names == ("ant", "bee", "cow")
    for part in (data.train, data.test):
        assert [number % 3 for number in numbers(part)] == part.labels.tolist()
    assert sorted(numbers(data.train) + numbers(data.test)) == list(range(30))


def test_features_of_cifar100(parquet, settings, numbers):
    names = [f"fine{number}" for number in range(100)]
    coarse = {"coarse_label": (datasets.ClassLabel(num_classes=20), [0] * 200)}
    fine = datasets.ClassLabel(names=names)
    for file, first in (("train-00000-of-00001", 0), ("test-00000-of-00001", 200)):
        root = parquet(file, [row % 100 for row in range(200)], first, "img", "fine_label", fine, coarse)
    data = load_data(settings(path=str(root), image_column="img", label_column="fine_label", test_split="test"))
    assert data.class_names == tuple(names)
    assert sorted(numbers(data.train)) == list(range(200))
    assert sorted(numbers(data.test)) == list(range(200, 400))
    superclasses = settings(path=str(root), image_column="img", label_column="coarse_label")
    with pytest.raises(DataError, match="one class only"):
        load_data(superclasses)


def test_features_of_imagenet_and_its_test_split_without_labels(parquet, settings, numbers):
    parquet("train-00000-of-00002", LABELS[:15])
    parquet("train-00001-of-00002", LABELS[15:], first=15)
    parquet("test-00000-of-00001", [-1, -1], first=40)
    root = parquet("validation-00000-of-00001", [2, 0, 1], first=50)
    data = load_data(settings(path=str(root), test_split="validation"))
    assert sorted(numbers(data.train)) == list(range(30))
    assert numbers(data.test) == [50, 51, 52]
    assert data.test.labels.tolist() == [2, 0, 1]
    with pytest.raises(DataError, match=r"row 0 of .* \(test\) has no label.*data\.test_split"):
        load_data(settings(path=str(root)))


@pytest.mark.parametrize("missing", [-1, None])
def test_training_rows_without_labels(parquet, settings, missing):
    root = parquet("train", [*LABELS[:7], missing, *LABELS])
    with pytest.raises(DataError, match=r"row 7 of .* \(train\) has no label"):
        load_data(settings(path=str(root)))


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [("int64", [10, 2, 7], ("2", "7", "10")), ("string", ["b", "a", "c"], ("a", "b", "c"))],
)
def test_numbers_and_text_are_labels_where_named(parquet, settings, numbers, kind, values, names):
    root = parquet("train", [values[row % 3] for row in range(30)], kind=datasets.Value(kind))
    data = load_data(settings(path=str(root), label_column="label"))
    assert data.class_names == names
    expected = [names.index(str(values[number % 3])) for number in numbers(data.train)]
    assert data.train.labels.tolist() == expected
    usual = load_data(settings(path=str(root)))  # label is a usual name
    assert usual.class_names == names
    assert usual.train.labels.tolist() == data.train.labels.tolist()


@pytest.mark.parametrize("kind", ["int64", "string", "bool"])
def test_label_columns_of_unusual_names_are_not_guessed_but_named(parquet, settings, kind):
    values = [row % 2 for row in range(30)] if kind == "int64" else [row % 2 == 0 for row in range(30)]
    values = [str(value) for value in values] if kind == "string" else values
    root = parquet("train", values, label="verdict", kind=datasets.Value(kind))
    data = load_data(settings(path=str(root)))
    assert not data.labelled
    assert "no column of labels is known; data.label_column can name another: verdict" in data.notes
    assert load_data(settings(path=str(root), label_column="verdict")).labelled


def test_numbers_with_fractions_are_not_labels(parquet, settings):
    root = parquet("train", [0.5] * 30, kind=datasets.Value("float64"))
    with pytest.raises(SettingError, match=r"data\.label_column: got 'label'; expected a column of labels"):
        load_data(settings(path=str(root)))


@pytest.mark.parametrize("column", [None, "label"])
def test_texts_are_not_classes(parquet, settings, column):
    root = parquet("train", [f"a photo of part {row}" for row in range(30)], kind=datasets.Value("string"))
    with pytest.raises(DataError, match=r"has 30 different values in 30 rows of column 'label', too many for classes"):
        load_data(settings(path=str(root), label_column=column))


NAMED = ("ant", "bee", "cow")
KINDS = {
    "numbered alike": (datasets.ClassLabel(names=["ant", "bee", "cow"]), [0, 1, 2]),
    "numbered otherwise": (datasets.ClassLabel(names=["cow", "ant", "bee"]), [1, 2, 0]),
    "with a class that does not occur": (datasets.ClassLabel(names=["asp", "cow", "bee", "ant"]), [3, 2, 1]),
    "as texts": (datasets.Value("string"), ["ant", "bee", "cow"]),
}


@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("test", KINDS)
def test_labels_of_both_splits_are_read_by_name(parquet, settings, numbers, train, test):
    """Image n shows class n % 3, whatever its number is."""
    for file, (kind, values), first in (("train", KINDS[train], 0), ("test", KINDS[test], 300)):
        root = parquet(file, [values[row % 3] for row in range(30)], first, kind=kind)
    data = load_data(settings(path=str(root)))
    for part in (data.train, data.test):
        expected = [NAMED[number % 3] for number in numbers(part)]
        assert [data.class_names[label] for label in part.labels.tolist()] == expected


@pytest.mark.parametrize("second", [kind for kind in KINDS if kind != "numbered alike"])
def test_labels_of_training_files_are_read_by_name(parquet, settings, numbers, second):
    for file, name, first in (("train-0", "numbered alike", 0), ("train-1", second, 300)):
        kind, values = KINDS[name]
        root = parquet(file, [values[row % 3] for row in range(30)], first, kind=kind)
    data = load_data(settings(path=str(root), test_share=0.0))
    assert sorted(numbers(data.train)) == [*range(30), *range(300, 330)]
    expected = [NAMED[number % 3] for number in numbers(data.train)]
    assert [data.class_names[label] for label in data.train.labels.tolist()] == expected


def test_class_numbers_next_to_class_names_are_refused(parquet, settings):
    parquet("train-0", LABELS)
    root = parquet("train-1", LABELS, kind=datasets.Value("int64"))
    with pytest.raises(DataError, match="class names of 'label' differ, some without names"):
        load_data(settings(path=str(root)))


def test_test_table_without_the_label_column(parquet, settings):
    parquet("train", LABELS)
    root = parquet("test", LABELS, label="species")
    with pytest.raises(DataError, match=r"\(test\) has no column 'label', unlike the training split: image, species"):
        load_data(settings(path=str(root)))


@pytest.mark.parametrize(
    ("name", "sibling"), [("set[1]", "set1"), ("set?", "sets"), ("set*", "set-old"), ("[!x]set", "aset")]
)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_path_is_not_a_pattern(parquet, settings, numbers, tmp_path, name, sibling, as_file):
    parquet("train", LABELS, first=300).rename(tmp_path / sibling)
    root = parquet("train", LABELS).rename(tmp_path / name)
    (root / "train.parquet").rename(root / "train[0-9]*?.parquet")
    path = root / "train[0-9]*?.parquet" if as_file else root
    assert sorted(numbers(load_data(settings(path=str(path), test_share=0.0)).train)) == list(range(30))


@pytest.mark.parametrize("folder", ["data", "plain_text"])
def test_clone_from_the_hub(parquet, settings, numbers, tmp_path, folder):
    parquet("train-00000-of-00001", LABELS)
    clone = tmp_path / "clone"
    clone.mkdir()
    parquet("TEST-00000-of-00001", LABELS, first=300).rename(clone / folder)
    (clone / "README.md").write_text("---")
    data = load_data(settings(path=str(clone)))
    assert sorted(numbers(data.train) + numbers(data.test)) == [*range(30), *range(300, 330)]
    parquet("train", LABELS).rename(clone / "other")
    with pytest.raises(DataError, match=r"several folders with train\*\.parquet: expected one of"):
        load_data(settings(path=str(clone)))


@pytest.mark.parametrize("file", ["valid-0", "dev", "eval.1", "Testing"])
def test_usual_names_of_test_files(parquet, settings, numbers, file):
    parquet("train", LABELS)
    parquet("values", LABELS, first=100)
    root = parquet(file, LABELS, first=300)
    assert numbers(load_data(settings(path=str(root))).test) == list(range(300, 330))


def test_text_label_that_the_training_rows_lack(parquet, settings):
    kind = datasets.Value("string")
    parquet("train", ["a", "b"] * 5, kind=kind)
    root = parquet("test", ["a", "z"], kind=kind)
    with pytest.raises(DataError, match=r"\(test\) has the label 'z'"):
        load_data(settings(path=str(root), label_column="label"))


def test_one_file_as_path(parquet, settings):
    root = parquet("anything", LABELS)
    assert len(load_data(settings(path=str(root / "anything.parquet"))).train) == 24


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("image_column", "picture", "mask, image"),
        ("image_column", "label", "mask, image"),
        ("label_column", "species", "label"),
        ("label_column", "image", "label"),
    ],
)
def test_unknown_column(parquet, settings, setting, value, expected):
    root = parquet("train", LABELS, extra={"mask": (datasets.Image(), [None] * 30)})
    with pytest.raises(SettingError, match=f"data.{setting}: got '{value}'; .*: {expected}"):
        load_data(settings(path=str(root), **{setting: value}))


def test_table_without_images(settings, tmp_path):
    table = datasets.Dataset.from_dict({"label": [0, 1]}, datasets.Features({"label": datasets.Value("int64")}))
    table.to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(SettingError, match=r"data\.image_column: got None.*the table has none, only: label"):
        load_data(settings(path=str(tmp_path)))


def test_broken_row_is_named(settings, tmp_path):
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    cells = [{"bytes": b"nothing", "path": None}] * 10
    table = datasets.Dataset.from_dict({"image": cells, "label": [0, 1] * 5}, kinds)
    table.to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(DataError, match=r"row \d of .* \(train\) cannot be read as an image"):
        load_data(settings(path=str(tmp_path)))


def test_broken_parquet_file(settings, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"data\.path=.* cannot be read") as caught:
        load_data(settings(path=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_hub_out_of_reach(settings, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"some/set cannot be downloaded from the hub; data\.path takes a local copy"
    ) as caught:
        load_data(settings(hub="some/set"))
    assert "\n" not in str(caught.value)


def test_hub_set_is_read_by_its_splits(parquet, settings, numbers, monkeypatch):
    parquet("train", LABELS)
    parquet("validation", [1, 2], first=100)
    root = parquet("test", [-1, -1], first=200)
    local = datasets.load_dataset(
        "parquet", data_files={split: f"{root}/{split}.parquet" for split in ("train", "validation", "test")}
    )
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: asked.append(name) or local)
    data = load_data(settings(hub="some/set", test_split="validation"))
    assert asked == ["some/set"]
    assert numbers(data.test) == [100, 101]
    with pytest.raises(SettingError, match=r"data\.test_split: got 'dev'; .*train, validation, test"):
        load_data(settings(hub="some/set", test_split="dev"))
    with pytest.raises(SettingError, match=r"data\.train_split: got 'learn'"):
        load_data(settings(hub="some/set", train_split="learn"))


def test_path_goes_before_the_hub(parquet, settings):
    data = load_data(settings(hub="some/set", path=str(parquet("train", LABELS))))
    assert len(data.train) == 24


def test_bare_bytes_are_images(settings, tmp_path, picture, numbers):
    import io

    import pyarrow
    from pyarrow import parquet as files

    cells = []
    for number in range(6):
        stream = io.BytesIO()
        picture(number).save(stream, "PNG")
        cells.append(stream.getvalue())
    files.write_table(pyarrow.table({"photo": cells, "kind": [0, 1] * 3}), tmp_path / "train.parquet")
    data = load_data(settings(path=str(tmp_path), label_column="kind", test_share=0.0))
    assert sorted(numbers(data.train)) == list(range(6))
    assert torch.equal(data.train.labels, torch.tensor([number % 2 for number in numbers(data.train)]))
