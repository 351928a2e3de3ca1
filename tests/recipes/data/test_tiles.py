"""Tiles: they cover every pixel, are read once a picture, and are joined to pictures by the worst one."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from large_pictures import write_large_pictures
from PIL import Image

from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.data.overview import overview
from multilevel.recipes.data.sources.folders import FolderSource
from multilevel.recipes.data.tiles import Pictures, Tiling, tile_pixels
from multilevel.solvers import DataError, SettingError

COUNTS = {"good": 12, "pitted": 12}
SHAPES = [(512, 512), (640, 480), (100, 1000), (97, 61), (1, 1), (3, 200)]


def settings(root, **changes):
    usual = {"name": "folder", "path": str(root), "image_size": 8, "channels": 1, "patch_size": 4, "batch_size": 4}
    return DataSettings(**{**usual, "near_copies": "keep", "tiles": 4, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_large_pictures(tmp_path_factory.mktemp("large") / "images", COUNTS, masks=True, width=96, height=64)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_every_pixel_is_in_a_tile_and_neighbours_overlap_by_a_quarter(width, height, count, fit):
    boxes = Tiling(count, fit, None).boxes(width, height)
    covered = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        covered[top:bottom, left:right] = True
    assert covered.all()

    across, down = boxes[0][2], boxes[0][3]
    lefts, tops = sorted({box[0] for box in boxes}), sorted({box[1] for box in boxes})
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(across, down)}
    for starts, side in ((lefts, across), (tops, down)):
        assert max((after - before for before, after in pairwise(starts)), default=0) <= 0.75 * side + 1  # whole pixels

    # N sides less N - 1 overlaps of a quarter are the length: side = length / (1 + 0.75 (N - 1)), rounded up
    def side_of(length):
        return int(np.ceil(length / (1 + 0.75 * (count - 1)) - 1e-9))

    if fit == "crop":
        assert across == down == side_of(min(width, height))
        longer = max(width, height)
        along = max(count, int(np.ceil((longer - across) / (0.75 * across) - 1e-9)) + 1)
        assert len(boxes) == count * along
    else:
        assert (across, down, len(boxes)) == (side_of(width), side_of(height), count**2)


def test_tiles_are_those_of_plain_slices(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    tiling = Tiling(2, "crop", None)  # 4/7 of 64 pixels: a side of 37, and starts at most 27.75 apart
    with Image.open(tmp_path / "a.png") as picture:
        tiles = tile_pixels(picture, tiling, 37, 1)
    tops, lefts = [0, 27], [0, 20, 39, 59]
    expected = [values[None, top : top + 37, left : left + 37] for top in tops for left in lefts]
    np.testing.assert_array_equal(tiles, expected)


def test_a_picture_on_its_side_is_turned_before_it_is_cut(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 80), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn to the right to show it upright
    for kind in ("good", "bad"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            Image.fromarray(values).save(tmp_path / kind / f"{number}.png", exif=exif)
    data = load_data(settings(tmp_path, tiles=1, image_size=40, mask_share=0), allow_no_mask=True)
    upright = np.rot90(values, -1)
    part = data.train
    first = torch.from_numpy(part.pictures.positions(np.array([0])))
    expected = [upright[None, top : top + 40] for top in (0, 20, 40)]  # three squares cover it, at most 30 apart
    np.testing.assert_array_equal(part.pixels(first), expected)


def test_pictures_are_divided_as_without_tiles_and_no_picture_is_in_two_parts(root):
    plain, tiled = (load_data(settings(root, tiles=tiles, validation_share=0.2)) for tiles in (None, 4))
    for name in ("pretrain", "finetune", "mask", "train", "validation", "test"):
        part = getattr(tiled, name)
        assert part.pictures.rows.tolist() == getattr(plain, name).indices.tolist()
        assert len(part) == 28 * len(part.pictures)  # 4 along 64 pixels, 7 along 96
        picture_of = [part.images.source.picture(row) for row in part.indices.tolist()]
        assert part.groups.tolist() == picture_of  # so folds keep the tiles of a picture together
    record = tiled.record()
    assert replace(record, mean=plain.record().mean, std=plain.record().std) == plain.record()  # of pictures


def test_groups_of_pictures_are_groups_of_their_tiles(root):
    data = load_data(settings(root, group=r"/\d\d(\d)", test_share=0.3))
    digits = [int(name[-5]) for name in data.train.images.source.whole.names]
    assert len(set(digits)) == 10
    for part in (data.finetune, data.mask, data.test):
        others = set(range(len(digits))) - set(part.pictures.rows)
        assert not {digits[row] for row in part.pictures.rows} & {digits[row] for row in others}
        groups = part.groups.numpy()[part.pictures.firsts]
        same = groups[:, None] == groups
        of_digit = np.array([digits[row] for row in part.pictures.rows])
        np.testing.assert_array_equal(same, of_digit[:, None] == of_digit)
        np.testing.assert_array_equal(part.groups.numpy(), groups[part.pictures.numbers])


def test_a_tile_without_a_marked_pixel_is_good(root):
    data = load_data(settings(root))
    source, tiling = data.train.images.source, Tiling(4, "crop", "good")
    good, pitted = (data.class_names.index(name) for name in ("good", "pitted"))
    for row in data.train.pictures.rows:
        name = source.whole.names[row]
        mask = root / "masks" / name
        marked = np.asarray(Image.open(mask)) if mask.exists() else np.zeros((64, 96))
        expected = [
            pitted if marked[top:bottom, left:right].any() else good
            for left, top, right, bottom in tiling.boxes(96, 64)
        ]
        tiles = source.labels[source.rows_of(np.array([row]))].tolist()
        assert tiles == expected
        assert (pitted in tiles) == (name.startswith("pitted"))
    test = data.test.pictures
    names = [source.whole.names[row].split("/")[0] for row in test.rows]
    assert [data.class_names[label] for label in test.labels] == names  # a picture keeps its label
    assert data.target_counts == tuple(np.bincount(data.train.labels).tolist())


def test_without_marks_a_tile_has_the_label_of_its_picture(root, tmp_path):
    (tmp_path / "images").mkdir()
    for kind in COUNTS:
        (tmp_path / "images" / kind).symlink_to(root / kind)
    data = load_data(settings(tmp_path / "images"))
    pictures = data.train.pictures
    assert data.train.labels.tolist() == pictures.labels[pictures.numbers].tolist()
    assert any("no defects are marked" in note for note in data.notes)


def test_boxes_of_a_table_are_marks(tmp_path):
    datasets = pytest.importorskip("datasets")
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (40, 40), dtype=np.uint8)) for _ in range(8)]
    columns = {
        "image": pictures,
        "label": [0, 1] * 4,
        "boxes": [[] if row % 2 == 0 else [[30.0, 2.0, 6.0, 5.0]] for row in range(8)],
    }
    kinds = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ok", "dent"]),
            "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
        }
    )
    datasets.Dataset.from_dict(columns, kinds).to_parquet(str(tmp_path / "train.parquet"))
    data = load_data(settings(tmp_path, tiles=2, mask_share=0), allow_no_mask=True)  # tiles of 23 pixels, from 0 and 17
    pictures = data.train.pictures
    for number, label in enumerate(pictures.labels):
        tiles = data.train.labels[torch.from_numpy(pictures.positions(np.array([number])))].tolist()
        assert tiles == ([0, 0, 0, 0] if label == 0 else [0, 1, 0, 0])


def test_a_picture_is_decoded_once_for_all_its_tiles(root, monkeypatch):
    opened, plain = [], FolderSource.open
    monkeypatch.setattr(FolderSource, "open", lambda self, row: (opened.append(row), plain(self, row))[1])
    data = load_data(settings(root, mask_share=0, fit="stretch"), allow_no_mask=True)
    opened.clear()
    data.test.pixels(torch.arange(len(data.test)))
    looks = 1  # at one picture, to decide about threads
    assert len(opened) <= len(data.test.pictures) + looks


def test_a_broken_picture_is_named_once(root, tmp_path):
    for kind in COUNTS:
        (tmp_path / kind).mkdir()
        for file in (root / kind).iterdir():
            (tmp_path / kind / file.name).write_bytes(file.read_bytes())
    (tmp_path / "good" / "000.pgm").write_bytes(b"P5 96 64 255\n")
    (tmp_path / "good" / "001.pgm").write_bytes(b"P5 96 64 255\n")
    with pytest.raises(DataError, match=r"^2 images: ") as raised:
        load_data(settings(tmp_path, test_share=0.0))
    assert str(raised.value).count("000.pgm") == 1


def test_the_worst_tile_is_that_of_a_plain_loop():
    random = np.random.default_rng(0)
    counts, good = random.integers(1, 6, 40), 1
    pictures = Pictures.of_tiles(counts.tolist(), good)
    logits = random.normal(size=(counts.sum(), 3)).astype(np.float32)
    features = random.normal(size=(counts.sum(), 5)).astype(np.float32)
    joined, joined_logits = pictures.join(features, logits)
    start = 0
    for picture, count in enumerate(counts):
        rows = range(start, start + count)
        chances = [np.exp(logits[row, good]) / np.exp(logits[row].astype(float)).sum() for row in rows]
        worst = start + int(np.argmin(chances))
        assert joined_logits is not None
        np.testing.assert_array_equal(joined_logits[picture], logits[worst])
        np.testing.assert_array_equal(joined[picture], features[worst])
        start += count
    means, _ = pictures.join(features, None)
    expected = [part.mean(0) for part in np.split(features, counts.cumsum()[:-1])]
    np.testing.assert_allclose(means, expected, atol=1e-6)


def test_the_worst_tile_is_found_in_any_order_and_where_probabilities_round_to_one():
    pictures = Pictures(np.array([1, 0, 1, 0]), np.array([5, 9]), np.array([1, 0]), good=0)
    logits = np.array([[-60.0, 0.0], [3.0, 0.0], [-80.0, 0.0], [2.0, 0.0]])
    assert pictures.join(logits, logits)[0].tolist() == [[2.0, 0.0], [-80.0, 0.0]]
    chosen = pictures[np.array([3, 0])]
    assert (chosen.rows.tolist(), chosen.labels.tolist(), chosen.numbers.tolist()) == ([5, 9], [1, 0], [0, 1])
    assert chosen.worst(logits[[3, 0]]).tolist() == [0, 1]


def test_images_without_tiles_stand_for_themselves():
    every = np.array([7, 3, 5])
    pictures = Pictures(np.arange(3), every, np.array([0, 1, 1]))
    assert pictures.worst(np.eye(3)).tolist() == [0, 1, 2]
    assert pictures[np.array([2, 0])].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changes", "targets", "words"),
    [
        ({"name": "digits", "path": None}, "labels", "data.tiles: got 4; expected null: data=digits has no picture"),
        ({}, "mask", "data.tiles: got 4; expected null: only task=classification"),
        ({}, "boxes", "data.tiles: got 4; expected null: only task=classification"),
        ({}, "multilabels", "data.tiles: got 4; expected null: only task=classification"),
        ({"good": "fine"}, "labels", "data.good: got 'fine'; expected the class without a defect, one of good, pitted"),
        ({"good": "good", "tiles": None}, "labels", "data.good: got 'good'; expected null without data.tiles=N"),
        ({"tiles": 0}, "labels", "data.tiles"),
    ],
)
def test_what_has_no_meaning_with_tiles_is_refused(root, changes, targets, words):
    with pytest.raises(SettingError, match=words):
        load_data(settings(root, **changes), targets=targets)


def test_classes_of_which_none_is_known_to_be_good_are_refused(root, tmp_path):
    for new, kind in (("dent", "good"), ("burr", "pitted")):
        (tmp_path / new).symlink_to(root / kind)
    with pytest.raises(SettingError, match=r"data.good: got None; expected the class without a defect, one of burr, d"):
        load_data(settings(tmp_path))
    assert load_data(settings(tmp_path, good="dent")).tiling == Tiling(4, "crop", "dent")


def test_images_without_labels_need_no_good_class(root, tmp_path):
    (tmp_path / "unlabelled").symlink_to(root / "good")
    data = load_data(settings(tmp_path), allow_no_mask=True)
    assert len(data.pretrain) == 28 * 12
    assert data.tiling == Tiling(4, "crop", None)


def test_the_overview_counts_pictures(root):
    data = load_data(settings(root))
    lines = "\n".join([*data.notes, *overview(data)])
    assert "a picture is cut into 28 tiles of 20 x 20 pixels" in lines
    assert "24 pictures are 672 tiles; the tile least likely to be good" in lines
    assert "images: 24 of 2 classes: good (12), pitted (12)" in lines
    assert "leaves out" not in lines
    # 14 pixels of a pit in a tile of 20 are 5.6 of 8
    assert "a marked defect keeps 31 pixels at 8 x 8, in the tile that shows most of it" in lines
