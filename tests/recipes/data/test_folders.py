from __future__ import annotations

import pytest
import torch

from multilevel.recipes.data import load_data
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


@pytest.mark.parametrize("test_folder", ["test", "validation", "val", "Test"])
def test_train_and_test_folders_are_the_splits(folder, settings, numbers, test_folder):
    files = [f"train/{file}" for file in CLASSES] + [f"{test_folder}/bee/x.png", f"{test_folder}/ant/y.png"]
    data = load_data(settings(path=str(folder([*files, "unlabelled/z.png"]))))
    assert sorted(numbers(data.train)) == list(range(20))
    assert sorted(zip(numbers(data.test), data.test.labels.tolist(), strict=True)) == [(20, 1), (21, 0)]
    assert 22 in numbers(data.pretrain)


def test_named_test_folder_goes_before_the_usual_ones(folder, settings, numbers):
    files = [f"train/{file}" for file in CLASSES] + ["test/ant/x.png", "holdout/ant/y.png"]
    data = load_data(settings(path=str(folder(files)), test_split="holdout"))
    assert numbers(data.test) == [21]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "png", "bmp", "webp", "tif", "tiff", "ppm", "PPM", "pgm"])
def test_every_suffix_is_read(folder, settings, suffix):
    data = load_data(settings(path=str(folder([f"a.{suffix}", f"b.{suffix}"]))))
    assert len(data.pretrain) == 2


def test_hidden_and_other_files_are_passed_over(folder, settings, numbers):
    root = folder(["a.png", ".hidden.png", ".thumbnails/b.png"])
    (root / "notes.txt").write_text("no image")
    assert numbers(load_data(settings(path=str(root))).pretrain) == [0]


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
