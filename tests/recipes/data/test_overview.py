"""What was read is said before training: classes, parts, files left out, and what size and fit leave of pictures."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from multilevel.recipes.data import load_data
from multilevel.recipes.data.overview import overview


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
