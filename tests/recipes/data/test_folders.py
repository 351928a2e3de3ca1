from __future__ import annotations

import os

import pytest
import torch
from datasets.data_files import SPLIT_KEYWORDS
from PIL import features

from multilevel.recipes.data import load_data
from multilevel.recipes.data.sources.listing import images_below
from multilevel.solvers.errors import DataError, SettingError

CLASSES = [f"{name}/{number}.png" for name in ("ant", "bee") for number in range(10)]


def test_subfolders_are_classes_and_images_keep_their_labels(folder, settings, numbers):
    data = load_data(settings(path=str(folder(CLASSES))))
    assert data.class_names == ("ant", "bee")
    assert data.labelled
    for part in (data.train, data.test):
        assert [number // 10 for number in numbers(part)] == part.labels.tolist()


@pytest.mark.parametrize("where", ["", "unlabelled/", "unlabeled/", "Unlabelled/deep/"])
def test_images_without_labels_are_for_pretraining_only(folder, settings, numbers, where):
    loose = [f"{where}extra{number}.png" for number in range(3)]
    data = load_data(settings(path=str(folder(CLASSES + loose))))
    extra = {20, 21, 22}
    assert set(numbers(data.pretrain)) == set(numbers(data.finetune)) | extra
    assert sorted(data.pretrain.labels[data.pretrain.labels < 0].tolist()) == [-1, -1, -1]
    for part in (data.finetune, data.mask, data.train, data.test):
        assert not extra & set(numbers(part))
    assert data.class_names == ("ant", "bee")


def test_folder_without_classes_has_no_labels(folder, settings, numbers):
    data = load_data(settings(path=str(folder(["a.png", "b.png", "unlabelled/c.png"]))))
    assert not data.labelled
    assert data.class_names == ()
    assert sorted(numbers(data.pretrain)) == [0, 1, 2]
    assert data.pretrain.labels.tolist() == [-1, -1, -1]
    for part in (data.finetune, data.mask, data.train, data.test):
        assert len(part) == 0
        assert part.pixels(torch.arange(0)).shape == (0, 3, 8, 8)


IN_CAPITALS = [("Train", "Test"), ("TRAINING", "TESTING"), ("Training", "Valid"), ("train-images", "test_images")]


@pytest.mark.parametrize(
    ("train_folder", "test_folder"),
    [
        *((train, test) for train in SPLIT_KEYWORDS["train"] for test in SPLIT_KEYWORDS["test"]),
        *(("train", validation) for validation in SPLIT_KEYWORDS["validation"]),
        *IN_CAPITALS,
    ],
)
def test_train_and_test_folders_are_the_splits(folder, settings, numbers, train_folder, test_folder):
    files = [f"{train_folder}/{file}" for file in CLASSES] + [f"{test_folder}/bee/x.png", f"{test_folder}/ant/y.png"]
    data = load_data(settings(path=str(folder([*files, "unlabelled/z.png"]))))
    assert sorted(numbers(data.train)) == list(range(20))
    assert sorted(zip(numbers(data.test), data.test.labels.tolist(), strict=True)) == [(20, 1), (21, 0)]
    assert 22 in numbers(data.pretrain)


def test_named_test_folder_goes_before_the_usual_ones(folder, settings, numbers):
    files = [f"train/{file}" for file in CLASSES] + ["test/ant/x.png", "holdout/ant/y.png"]
    data = load_data(settings(path=str(folder(files)), test_split="holdout"))
    assert numbers(data.test) == [21]


@pytest.mark.parametrize(
    "suffix", ["jpg", "JPG", "jfif", "JFIF", "png", "bmp", "webp", "gif", "tif", "TIFF", "PPM", "pgm"]
)
def test_every_suffix_is_read(folder, settings, suffix):
    data = load_data(settings(path=str(folder([f"a.{suffix}", f"b.{suffix}"]))))
    assert len(data.pretrain) == 2


def test_hidden_and_other_files_are_passed_over(folder, settings, numbers):
    root = folder(["a.png", ".hidden.png", ".thumbnails/b.png"])
    (root / "notes.txt").write_text("no image")
    assert numbers(load_data(settings(path=str(root))).pretrain) == [0]


@pytest.mark.parametrize("place", [".ipynb_checkpoints", "line 1/.ipynb_checkpoints", "line 1/.cache/deep"])
def test_hidden_folders_inside_classes_are_passed_over(folder, settings, place):
    files = [f"{name}/line 1/{number}.png" for name in ("ant", "bee") for number in range(6)]
    root = folder([*files, *(f"{name}/{place}/0-checkpoint.png" for name in ("ant", "bee"))])
    data = load_data(settings(path=str(root), near_copies="keep"))
    assert sum(len(part) for part in (data.train, data.validation, data.test)) == 12


def test_path_that_is_missing_or_not_there(settings, tmp_path):
    with pytest.raises(SettingError, match=r"data\.path: got None"):
        load_data(settings())
    with pytest.raises(SettingError, match=r"data\.path: got '.*nowhere'"):
        load_data(settings(path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("files", [[], ["train/readme.txt"]])
def test_folder_without_images(settings, tmp_path, files):
    for file in files:
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("no image")
    with pytest.raises(DataError, match=r"data\.path=.* holds no images"):
        load_data(settings(path=str(tmp_path)))


def test_broken_image_is_named_at_load(folder, settings):
    root = folder(CLASSES)
    (root / "bee" / "3.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"bee/3\.png cannot be read as an image") as caught:
        load_data(settings(path=str(root), test_share=0.0))
    assert "\n" not in str(caught.value)


def test_broken_image_is_named_at_use_where_images_are_decoded_on_demand(folder, settings, numbers):
    root = folder(CLASSES)
    on_demand = settings(path=str(root), memory_gib=0.0, near_copies="keep")
    broken = CLASSES[numbers(load_data(on_demand).mask)[0]]
    whole = (root / broken).read_bytes()
    (root / broken).write_bytes(whole[: len(whole) // 2])
    data = load_data(on_demand)  # the mean is that of the pretraining images: this one is not read
    with pytest.raises(DataError, match=f"{broken} cannot be read as an image"):
        data.mask.pixels(torch.tensor([0]))


def test_one_class_only(folder, settings):
    with pytest.raises(DataError, match=r"one class only \(ant\)"):
        load_data(settings(path=str(folder(CLASSES[:10]))))


@pytest.mark.parametrize(("files", "message"), [(["test/readme.png"], "no class folders"), ([], "no class folders")])
def test_test_folder_without_classes(folder, settings, files, message):
    root = folder([f"train/{file}" for file in CLASSES] + files)
    (root / "test").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        load_data(settings(path=str(root)))


def test_test_class_that_the_training_images_lack(folder, settings):
    root = folder([f"train/{file}" for file in CLASSES] + ["test/wasp/1.png"])
    with pytest.raises(DataError, match="wasp is a class without training images"):
        load_data(settings(path=str(root)))


def test_test_folder_without_a_training_folder_is_not_taken_for_a_class(folder, settings):
    with pytest.raises(DataError, match="'test' but no 'train'"):
        load_data(settings(path=str(folder([*CLASSES, "test/ant/1.png"]))))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["bus", "car", "train"], "a folder 'train' next to 'bus', 'car': rename 'train' if it is a class"),
        (["bus", "train/steam", "train/diesel"], "a folder 'train' next to 'bus'"),
        (
            ["Training/a", "Training/b", "train/a", "train/b"],
            r"several folders of training images \('Training', 'train'",
        ),
        (["train/a", "train/b", "test/a", "testing/a"], r"several folders of test images \('test', 'testing'"),
        (["a/train", "a/test", "b/train", "b/test"], r"a contains 'train' and 'test': expected train/CLASS"),
        (["set/train/a", "set/Testing/a"], r"set contains 'train' and 'Testing'.*data\.path=.*set"),
        (["train_1", "test_1"], "train_1 may be a class or a split"),
        (["a", "b", "Testing/a"], "'Testing' but no 'train'"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(folder, settings, folders, message):
    root = folder([f"{name}/{number}.png" for name in folders for number in range(5)])
    with pytest.raises(DataError, match=message) as caught:
        load_data(settings(path=str(root)))
    assert "\n" not in str(caught.value)


def test_valid_is_a_class_next_to_invalid(folder, settings):
    root = folder([f"{name}/{number}.png" for name in ("valid", "invalid") for number in range(5)])
    assert load_data(settings(path=str(root))).class_names == ("invalid", "valid")


def test_folders_that_are_not_read_are_named(folder, settings, numbers):
    files = [f"{split}/{file}" for split in ("train", "test", "valid") for file in CLASSES]
    root = folder([*files, "sketches/1.png"])
    for path, kind in (("train/wasp/1.heic", "image"), ("train/masks/readme.txt", "text")):
        (root / path).parent.mkdir()
        (root / path).write_text(kind)
    data = load_data(settings(path=str(root)))
    assert sorted(numbers(data.test)) == list(range(20, 40))
    assert "not read, next to train and test: sketches (1 images), valid (20 images)" in data.notes
    assert "folders without images, which are not classes: wasp (.heic)" in data.notes


def test_links_to_folders_are_followed_and_loops_are_not(folder, settings, numbers, tmp_path):
    root = folder(CLASSES)
    outside = tmp_path / "outside"
    outside.mkdir()
    os.rename(root / "ant" / "9.png", outside / "9.png")
    (root / "ant" / "more").symlink_to(outside, target_is_directory=True)
    (root / "all").symlink_to(root, target_is_directory=True)
    (root / "bee" / "up").symlink_to(root, target_is_directory=True)
    (root / "bee" / "itself").symlink_to(".", target_is_directory=True)
    (root / "bee" / "gone.png").symlink_to("nowhere.png")
    data = load_data(settings(path=str(root), test_share=0.0))
    assert data.class_names == ("ant", "bee")
    assert sorted(numbers(data.train)) == list(range(20))
    assert data.pretrain.images.source.left_out == {"broken links": 1}


def test_folders_that_link_to_each_other_end(folder, settings):
    root = folder(["a/1.png", "b/2.png"])
    (root / "a" / "b").symlink_to(root / "b", target_is_directory=True)
    (root / "b" / "a").symlink_to(root / "a", target_is_directory=True)
    names = [path.relative_to(root).as_posix() for path in images_below(root / "a")]
    assert names == ["a/1.png", "a/b/2.png"]


def test_two_names_of_one_folder_are_not_two_classes(folder, settings):
    root = folder(CLASSES)
    (root / "cow").symlink_to(root / "ant", target_is_directory=True)
    with pytest.raises(DataError, match=r"ant and .*cow are one folder by a link"):
        load_data(settings(path=str(root)))


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif_is_read(folder, settings):
    assert len(load_data(settings(path=str(folder(["a.avif", "b.AVIF"])))).pretrain) == 2
