"""What was read is said before training: classes, parts, files left out, and what size and fit leave of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from multilevel.recipes.data import load_data
from multilevel.recipes.data.overview import overview
from multilevel.solvers import DataError, SettingError


@pytest.fixture
def root(tmp_path):
    """20 good and 10 cracked pictures of 40 x 20; a crack of 4 x 4 pixels is in the centre, or at the left edge."""
    for name, count in (("good", 20), ("crack", 10)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([count, number]).integers(0, 255, (20, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
            if name == "crack":
                mask = Image.new("L", (40, 20))
                left = 18 if number < 8 else 2
                ImageDraw.Draw(mask).rectangle((left, 8, left + 3, 11), fill=255)
                mask.save(tmp_path / "images" / name / f"{number}_mask.png")
    return tmp_path / "images"


def test_classes_parts_and_files_left_out(root, settings):
    for name in ("notes.txt", "good/Thumbs.db", "good/more.txt", "unlabelled/0.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((root / "good" / "0.png").read_bytes())
    lines = overview(load_data(settings(path=str(root), validation_share=0.1, fit="stretch", near_copies="keep")))
    assert lines[:3] == [
        "images: 30 of 2 classes: good (20), crack (10); 1 without a label",
        "parts: pretrain (18), finetune (17), mask (4), validation (3), test (6)",
        "left out, since they are not images: .txt (2), .db (1)",
    ]


def test_pixels_of_a_defect_and_what_the_crop_leaves_out(root, settings):
    crop = overview(load_data(settings(path=str(root), image_size=10, patch_size=2, test_share=0, mask_share=0.2)))
    assert crop[2] == (
        "data.fit=crop leaves out 50% of a picture (median; at most 50%); data.fit=stretch keeps it all, distorted"
    )
    # 4 x 4 of 20 x 20 pixels are 2 x 2 of 10 x 10, and two defects are at the left edge
    assert crop[3] == (
        "a marked defect keeps 4 pixels at 10 x 10 (median; a tenth keep at most 0.0); 2 of 10 are outside the crop"
    )
    whole = overview(load_data(settings(path=str(root), image_size=20, patch_size=2, test_share=0, fit="stretch")))
    assert whole[2:] == ["a marked defect keeps 8 pixels at 20 x 20 (median; a tenth keep at most 8.0)"]


def test_folders_inside_a_class_are_named(root, settings):
    (root / "parts").mkdir()
    for name in ("good", "crack"):
        (root / name).rename(root / "parts" / name)
    (root / "rest" / "batch").mkdir(parents=True)
    for number in range(8):
        Image.new("L", (8, 8), 20 * number).save(root / "rest" / "batch" / f"{number}.png")
    lines = overview(load_data(settings(path=str(root), fit="stretch")))
    assert (
        "classes with folders inside, whose images are all of the class: parts (with crack, good), rest (with batch)"
        in lines
    )


def test_a_set_without_labels(folder, settings):
    assert overview(load_data(settings(path=str(folder(["0.png", "1.png"]))))) == [
        "images: 2 without labels",
        "parts: pretrain (2)",
    ]


def test_a_folder_of_unlabelled_images_is_pretrained_on_and_its_folders_are_counted(folder, settings, tmp_path):
    root = folder([f"{name}/{number}.png" for name in ("ant", "bee") for number in range(8)])
    for number, name in enumerate(("line 1/a/0.png", "line 1/1.png", "line 2/0.png", "0.png")):
        (tmp_path / "more" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (3, 50 * number, 3)).save(tmp_path / "more" / name)
    plain = load_data(settings(path=str(root)))
    data = load_data(settings(path=str(root), unlabelled=str(tmp_path / "more")))
    for part in ("finetune", "mask", "test"):
        assert getattr(data, part).indices.tolist() == getattr(plain, part).indices.tolist()
    assert data.pretrain.indices.tolist() == [*plain.pretrain.indices.tolist(), 16, 17, 18, 19]
    assert data.pretrain.pixels(torch.tensor([len(data.pretrain) - 1]))[0, 1, 0, 0] == 100  # the last by name: line 2
    assert overview(data)[2] == "folders of data.unlabelled: (top) (1), line 1 (2), line 2 (1)"
    path = tmp_path / "data.json"
    path.write_text(data.record().text())
    again = settings(path=str(root), unlabelled=str(tmp_path / "more"), division=str(path))
    assert load_data(again).record() == data.record()
    (tmp_path / "more" / "line 2" / "0.png").unlink()
    with pytest.raises(DataError, match=r"unlabelled:line 2/0\.png is missing"):
        load_data(again)


@pytest.mark.parametrize("folder_of_images", ["missing", "empty"])
def test_a_folder_without_unlabelled_images_is_refused(folder, settings, tmp_path, folder_of_images):
    (tmp_path / "empty").mkdir()
    root = folder([f"{name}/{number}.png" for name in ("ant", "bee") for number in range(8)])
    with pytest.raises((SettingError, DataError), match=r"data\.unlabelled.*"):
        load_data(settings(path=str(root), unlabelled=str(tmp_path / folder_of_images)))


def test_without_mask_learning_no_labels_are_reserved(folder, settings):
    root = folder([f"{name}/{number}.png" for name in ("ant", "bee") for number in range(10)])
    plain = load_data(settings(path=str(root)), allow_no_mask=True)
    assert (len(plain.finetune), len(plain.mask)) == (16, 0)
    guided = load_data(settings(path=str(root)))
    assert (len(guided.finetune), len(guided.mask)) == (12, 4)
    assert len(load_data(settings(path=str(root), mask_share=0.2), allow_no_mask=True).mask) == 4
