"""Masks, boxes and lists of labels: found, read, brought to the square, and served beside their images."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from multilevel.recipes.data import DataSettings, ImageLoader, load_data
from multilevel.recipes.data.columns import rarest_classes
from multilevel.recipes.data.images import Source, SourceSplits
from multilevel.recipes.data.targets.boxes import boxes_in_square, components
from multilevel.recipes.data.targets.marked import Masks
from multilevel.recipes.data.targets.masks import class_numbers
from multilevel.solvers.errors import DataError, SettingError

LABELS = [row % 3 for row in range(30)]
IMAGE = datasets.Image()


def rectangle(row, size=(8, 8), value=255):
    """A mask whose rectangle tells its row; nothing in every third."""
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    if row % 3:
        mask[row % 4 : row % 4 + 3, row % 5 : row % 5 + 2] = value
    return mask


def masks(rows=range(30), **options):
    return [Image.fromarray(rectangle(row, **options)) for row in rows]


def corners(row):
    return [row % 5, row % 4, row % 5 + 2, row % 4 + 3]


@pytest.fixture(params=[4.0, 0.0], ids=["memory", "streamed"])
def memory_gib(request):
    return request.param


def test_masks_of_a_table_go_with_their_images(parquet, settings, numbers, memory_gib):
    root = parquet("train", LABELS, extra={"mask": (IMAGE, masks())})
    data = load_data(settings(path=str(root), memory_gib=memory_gib), targets="mask")
    assert data.target_names == ("background", "defect")
    for part in (data.finetune, data.mask, data.train, data.test):
        rows = numbers(part)
        got = part.targets(torch.arange(len(part)))
        assert got.dtype == torch.int64
        assert np.array_equal(got.numpy(), np.stack([rectangle(row) > 0 for row in rows]))
        assert part.labels.tolist() == [row % 3 for row in rows]
    pixels = 6 * sum(row % 3 > 0 for row in numbers(data.train))
    assert data.target_counts == (64 * len(data.train) - pixels, pixels)
    assert torch.equal(data.pretrain.targets(torch.arange(3)), data.pretrain.labels[:3])


def test_mask_classes(parquet, settings, numbers):
    values = [Image.fromarray(rectangle(row, value=row % 3 + 1)) for row in range(30)]
    marks = masks()
    marks[2] = None  # an empty cell: nothing is marked
    extra = {"values": (IMAGE, values), "mask": (IMAGE, marks), "far": (IMAGE, masks(value=200))}
    root = parquet("train", LABELS, extra=extra)
    data = load_data(settings(path=str(root), mask_classes="labels", image_column="image"), targets="mask")
    assert data.target_names == ("background", "ant", "bee", "cow")
    assert data.target_counts[1] == 0
    for position, row in enumerate(numbers(data.train)):
        expected = (rectangle(row) > 0) * (1 + row % 3) * (row != 2)
        assert np.array_equal(data.train.targets(torch.tensor([position]))[0].numpy(), expected)
    choice = settings(path=str(root), mask_classes="values", mask_column="values", image_column="image")
    data = load_data(choice, targets="mask")
    assert data.target_names == ("background", "1", "2", "3")
    for position, row in enumerate(numbers(data.test)):
        assert np.array_equal(data.test.targets(torch.tensor([position]))[0].numpy(), rectangle(row, value=row % 3 + 1))
    choice = settings(path=str(root), mask_classes="values", mask_column="far", image_column="image", image_size=5)
    data = load_data(choice, targets="mask")
    assert data.train.targets(torch.arange(len(data.train))).unique().tolist() == [0, 200]  # nothing in between


def test_a_mask_is_read_by_what_it_is():
    grey = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    assert class_numbers(Image.fromarray(grey), "binary", 4).tolist() == [[0, 0, 1, 1]]
    assert class_numbers(Image.fromarray(grey), "labels", 4).tolist() == [[0, 0, 5, 5]]
    assert class_numbers(Image.fromarray(grey), "values", 4).tolist() == [[0, 127, 128, 255]]
    assert class_numbers(Image.fromarray(grey > 200), "binary", 0).tolist() == [[0, 0, 0, 1]]
    assert class_numbers(Image.fromarray(grey.astype(np.uint16) * 257), "binary", 0).tolist() == [[0, 0, 1, 1]]
    transparent = np.dstack([np.full((1, 4, 3), 0, dtype=np.uint8), np.zeros((1, 4), dtype=np.uint8)])
    assert class_numbers(Image.fromarray(transparent), "binary", 0).tolist() == [[0, 0, 0, 0]]
    palette = Image.fromarray(np.array([[0, 2]], dtype=np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255, 128, 0, 0])
    assert class_numbers(palette, "values", 0).tolist() == [[0, 2]]
    with pytest.raises(ValueError, match="colours"):
        class_numbers(Image.new("RGB", (2, 2)), "values", 0)
    with pytest.raises(ValueError, match="its values are 300 to 300"):
        class_numbers(Image.fromarray(np.full((1, 1), 300, dtype=np.uint16)), "values", 0)


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (33, 33)])
def test_masks_and_boxes_are_brought_to_the_square_as_images_are(settings, tmp_path, size):
    for name in ("ant", "bee"):
        for row in range(6):
            mask = np.zeros((size[1], size[0]), dtype=np.uint8)
            mask[8 + row : 16, 9 : 20 - row] = 255
            for place in (tmp_path / name, tmp_path / "masks" / name):
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(place / f"{row}.png")
    choice = settings(path=str(tmp_path), image_size=12, channels=1)
    found, boxes = load_data(choice, targets="mask").train, load_data(choice, targets="boxes").train
    every = torch.arange(len(found))
    pixels, marks, around = found.pixels(every)[:, 0], found.targets(every), boxes.targets(every)
    sure = (pixels < 32) | (pixels > 223)  # the rest lies on an edge and is mixed
    assert sure.float().mean() > 0.7
    assert torch.equal(marks[sure] > 0, pixels[sure] > 127)
    for mark, (box, *rest) in zip(marks.numpy(), around.tolist(), strict=True):
        (down, across), *others = ndimage.find_objects(mark)
        assert not others
        assert box[:4] == pytest.approx([across.start, down.start, across.stop, down.stop], abs=1)
        assert box[4] == 0
        assert all(row == [-1] * 5 for row in rest)


def test_components_by_hand():
    mask = np.zeros((9, 12), dtype=np.uint8)
    mask[1:3, 1:4] = 1
    mask[3, 4] = 1  # touches across a corner
    mask[6:9, 6:8] = 2
    mask[0, 11] = 1  # too small
    mask[5, 0] = 255
    assert components(mask, 2).tolist() == [[1, 1, 5, 4, 0], [6, 6, 8, 9, 1]]
    assert [11, 0, 12, 1, 0] in components(mask, 1).tolist()
    assert components(np.zeros((3, 3), dtype=np.uint8), 1).shape == (0, 5)


def test_boxes_cut_off_with_the_sides_of_a_picture():
    boxes = np.array(
        [[2, 0, 6, 4, 0], [0, 0, 6, 8, 1], [3, 0, 7, 8, 2], [10, 2, 12, 4, 3], [0, 0, 16, 8, 4]], dtype=float
    )
    expected = [[0, 0, 8, 8, 4], [0, 0, 3, 8, 2], [0, 0, 2, 4, 0], [6, 2, 8, 4, 3]]  # the largest first
    found = boxes_in_square(boxes, (16, 8), 8)
    assert found[:4].tolist() == expected
    assert (found[4:] == -1).all()
    assert torch.equal(boxes_in_square(boxes, (16, 8), 4)[:4, :4], found[:4, :4] / 2)
    stretched = boxes_in_square(boxes, (16, 8), 8, "stretch")  # half as wide, nothing cut off
    assert stretched[:5].tolist() == [
        [0, 0, 8, 8, 4],
        [0, 0, 3, 8, 1],
        [1.5, 0, 3.5, 8, 2],
        [1, 0, 3, 4, 0],
        [5, 2, 6, 4, 3],
    ]


def objects(rows, kind):
    """Boxes as sets of the hub have them; the last row of each three has none."""
    boxes = [[float(x), float(y), x1 - x, y1 - y] for x, y, x1, y1 in map(corners, rows)]
    boxes = [[box] * (row % 3 > 0) for row, box in zip(rows, boxes, strict=True)]
    one = {"bbox": datasets.Sequence(datasets.Value("float32"), length=4)}
    if kind == "plain":
        return datasets.Sequence(one["bbox"]), boxes
    one["category"] = datasets.ClassLabel(names=["x", "y", "z"])
    if kind == "dictionary of lists":
        cells = [{"bbox": some, "category": [row % 3] * len(some)} for row, some in zip(rows, boxes, strict=True)]
        return datasets.Sequence(one), cells
    return [one], [[{"bbox": box, "category": row % 3} for box in some] for row, some in zip(rows, boxes, strict=True)]


@pytest.mark.parametrize("kind", ["plain", "dictionary of lists", "list of dictionaries"])
def test_boxes_of_a_table(parquet, settings, numbers, kind):
    data = load_data(
        settings(path=str(parquet("train", LABELS, extra={"objects": objects(range(30), kind)}))), targets="boxes"
    )
    assert data.target_names == (("object",) if kind == "plain" else ("x", "y", "z"))
    assert sum(data.target_counts) == sum(row % 3 > 0 for row in numbers(data.train))
    for part in (data.train, data.test):
        for row, (box, *rest) in zip(numbers(part), part.targets(torch.arange(len(part))).tolist(), strict=True):
            number = 0 if kind == "plain" else row % 3
            # the square is 8 x 8, as the pictures are
            expected = [*(min(value, 8) for value in corners(row)), number] if row % 3 else [-1] * 5
            assert box == expected
            assert rest == [[-1] * 5] * 99
    assert data.test.targets(torch.arange(0)).shape == (0, 100, 5)


def test_boxes_that_are_corners_are_noticed(parquet, settings):
    cells = [[[4.0, 4.0, 7.0, 7.0]] for _ in range(30)]
    kind = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
    root = parquet("train", LABELS, extra={"boxes": (kind, cells)})
    with pytest.raises(
        DataError, match=r"row \d+ of .* a box goes from \[4.0, 4.0\] to \[11.0, 11.0\] .* 8 x 8 pixels"
    ):
        load_data(settings(path=str(root)), targets="boxes")


@pytest.mark.parametrize("targets", ["mask", "boxes"])
def test_images_without_labels_are_divided_by_whether_anything_is_marked(settings, tmp_path, targets):
    (tmp_path / "masks").mkdir()
    for row in range(40):
        Image.new("RGB", (8, 8), (row, 0, 9)).save(tmp_path / f"{row}.png")
        if row % 4 == 0:
            Image.fromarray(rectangle(1)).save(tmp_path / "masks" / f"{row}.png")
    (tmp_path / "unlabelled").mkdir()
    Image.new("RGB", (8, 8), (99, 0, 9)).save(tmp_path / "unlabelled" / "x.png")
    data = load_data(settings(path=str(tmp_path), min_area=1), targets=targets)
    assert data.class_names == ("without marks", "with marks")
    for part, marked in ((data.test, 2), (data.mask, 2), (data.finetune, 6)):
        assert part.labels.tolist() == [int(row % 4 == 0) for row in part.pixels(torch.arange(len(part)))[:, 0, 0, 0]]
        assert part.labels.sum() == marked
    assert data.pretrain.labels.min() == -1
    assert len(data.train) == 32
    labels = settings(path=str(tmp_path), mask_classes="labels")
    with pytest.raises(SettingError, match=r"data\.mask_classes: got 'labels'; expected binary or values"):
        load_data(labels, targets=targets)


def test_lists_of_labels(parquet, settings, numbers):
    lists = [[number for number in range(3) if row >> number & 1] for row in range(32)]
    kind = datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"]))
    names = datasets.Sequence(datasets.Value("string"))
    texts = [["xyz"[number] for number in some] for some in lists]
    root = parquet("train", lists, kind=kind, extra={"texts": (names, texts)})
    parquet("test", lists[:8], first=100, kind=kind, extra={"texts": (names, texts[:8])})
    for column in (None, "texts"):
        data = load_data(settings(path=str(root), label_column=column), targets="multilabels")
        assert data.target_names == ("x", "y", "z")
        assert data.class_names == ("x", "y", "z", "other")
        for part in (data.finetune, data.mask, data.test):
            rows = [row % 100 for row in numbers(part)]
            expected = [[float(row >> number & 1) for number in range(3)] for row in rows]
            assert part.targets(torch.arange(len(part))).tolist() == expected
        assert data.target_counts == tuple(data.train.targets(torch.arange(len(data.train))).sum(0).int().tolist())


def test_images_with_lists_go_by_their_rarest_class():
    lists = torch.tensor([[1, 1, 0]] * 4 + [[1, 0, 0]] * 5 + [[0, 0, 1]] * 2 + [[0, 0, 0]] * 3).float()
    assert rarest_classes(lists, 3).tolist() == [1] * 4 + [0] * 5 + [3] * 5  # two of class 2 are too few
    assert rarest_classes(lists[:-3], 3).tolist() == [1] * 4 + [0] * 5 + [0] * 2


@pytest.mark.parametrize("targets", ["mask", "boxes"])
def test_a_loader_serves_masks_and_boxes_moved_with_their_images(parquet, settings, targets, tmp_path):
    for name in ("ant", "bee"):
        for place in (tmp_path / name, tmp_path / "masks" / name):
            place.mkdir(parents=True)
            for row in range(8):
                white = np.pad(np.full((6, 5), 255, dtype=np.uint8), ((3 + row % 4, 7 - row % 4), (row, 11 - row)))
                Image.fromarray(white).save(place / f"{row}.png")
    data = load_data(settings(path=str(tmp_path), image_size=16, channels=1), targets=targets)
    torch.manual_seed(0)
    loader = ImageLoader(data.train, lambda images: images.float(), 12, flip=True, crop_scale=0.5)
    images, got = next(iter(loader))
    assert len({float(image.sum()) for image in images}) > 6
    for image, target in zip(images[:, 0], got, strict=True):
        if targets == "mask":
            sure = (image < 1) | (image > 254)
            assert torch.equal(target[sure], (image[sure] > 127).long())
        elif target[0, 4] == 0:
            rows, columns = torch.nonzero(image > 127, as_tuple=True)
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            torch.testing.assert_close(target[0, :4], found.float(), atol=1, rtol=0)


def test_broken_and_mismatched_masks_are_named(folder, settings):
    root = folder([f"{name}/{row}.png" for name in ("ant", "bee") for row in range(10)])
    (root / "masks" / "ant").mkdir(parents=True)
    for row in range(10):
        Image.fromarray(rectangle(1)).save(root / "masks" / "ant" / f"{row}.png")
    bad = root / "masks" / "ant" / "3.png"
    for targets in ("mask", "boxes"):
        choice = settings(path=str(root), test_share=0.0, min_area=1)
        assert load_data(choice, targets=targets)
        bad.write_bytes(b"no image")
        with pytest.raises(DataError, match=r"masks/ant/3\.png cannot be read as an image"):
            load_data(choice, targets=targets)
        Image.new("L", (8, 11)).save(bad)
        with pytest.raises(DataError, match=r"masks/ant/3\.png .*it has 8 x 11 pixels and its image 8 x 8"):
            load_data(choice, targets=targets)
        Image.new("L", (16, 16)).save(bad)  # of the same shape: half the resolution is no matter


def test_sets_that_lack_what_the_task_learns(folder, parquet, settings):
    root = folder([f"{name}/{row}.png" for name in ("ant", "bee") for row in range(10)])
    for targets in ("mask", "boxes"):
        with pytest.raises(DataError, match="data=tiny has no masks for this task: expected masks/CLASS/NAME"):
            load_data(settings(path=str(root)), targets=targets)
        with pytest.raises(DataError, match="data=digits has no masks"):
            load_data(settings(name="digits", channels=1), targets=targets)
    with pytest.raises(DataError, match="data=tiny has no lists of labels"):
        load_data(settings(path=str(root)), targets="multilabels")
    table = parquet("train", LABELS, extra={"mask": (IMAGE, masks(value=2))})
    with pytest.raises(DataError, match=r"nothing is marked in the training masks with data\.mask_classes=binary"):
        load_data(settings(path=str(table)), targets="mask")
    wrong = [("mask_column", "label", "mask"), ("boxes_column", "mask", "the table has none, only")]
    for setting, value, expected in wrong:
        with pytest.raises(SettingError, match=rf"data\.{setting}: got '{value}'.*{expected}"):
            load_data(settings(path=str(table), **{setting: value}), targets="boxes")
    with pytest.raises(SettingError, match=r"data\.label_column: got 'label'; expected a column of lists of labels"):
        load_data(settings(path=str(table), label_column="label"), targets="multilabels")


@pytest.mark.parametrize("where", ["masks/{}/{}.png", "masks/{}/{}_mask.png", "{}/{}_mask.png"])
def test_files_that_are_masks_are_no_images(folder, settings, numbers, where):
    images = [f"{name}/{row}.jpg" for name in ("ant", "bee") for row in range(10)]
    root = folder([*images, *(where.format("bee", row) for row in range(10))])
    data = load_data(settings(path=str(root)))
    assert data.class_names == ("ant", "bee")
    assert len(data.train) + len(data.test) == 20


def test_images_and_masks_side_by_side(folder, settings):
    root = folder([f"{part}/images/{row}.png" for part in ("train", "test") for row in range(12)])
    for part in ("train", "test"):
        (root / part / "masks").mkdir()
        for row in range(0, 12, 2):
            Image.fromarray(rectangle(1)).save(root / part / "masks" / f"{row}.png")
    data = load_data(settings(path=str(root)), targets="mask")
    assert data.class_names == ("without marks", "with marks")
    order = sorted(range(12), key=str)  # of the files' names
    assert data.test.targets(torch.arange(12)).flatten(1).any(1).tolist() == [row % 2 == 0 for row in order]


def test_a_mask_without_its_image_is_named(folder, settings):
    images = [f"{name}/{row}.png" for name in ("ant", "bee") for row in range(10)]
    root = folder([*images, "masks/ant/1.png", "masks/ant/77.png"])
    with pytest.raises(DataError, match=r"masks/ant/77\.png is a mask without an image"):
        load_data(settings(path=str(root)))


def test_a_class_may_be_called_masks(folder, settings):
    root = folder([f"{name}/{name}{row}.png" for name in ("masks", "none") for row in range(10)])
    assert load_data(settings(path=str(root))).class_names == ("masks", "none")


class Marks(Source):
    """Every second image has a mark."""

    has_masks = True

    def __init__(self, count):
        self.labels = torch.full((count,), -1)
        self.opened = []

    def open(self, row):
        return Image.new("L", (8, 8))

    def describe_row(self, row):
        return str(row)

    def open_mask(self, row):
        self.opened.append(row)
        return Image.new("L", (8, 8), 255 * (row % 2))


def test_masks_of_a_test_split_are_not_read_to_divide_the_training_images():
    train, test = Marks(6), Marks(4)
    settings = DataSettings(name="marks", image_size=8, channels=1, patch_size=2, batch_size=2)
    found = Masks.label(SourceSplits(train, test, ()), settings)
    assert found.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert set(train.opened) == set(range(6))
    assert test.opened == []


@pytest.mark.parametrize("kind", ["labels", "mask"])
def test_counts_of_classes_do_not_see_validation_images(parquet, settings, numbers, kind):
    root = parquet("train", LABELS, extra={"mask": (IMAGE, masks())})
    data = load_data(settings(path=str(root), validation_share=0.4), targets=kind)
    rows = numbers(data.train)
    assert rows
    assert not set(rows) & set(numbers(data.validation))
    if kind == "labels":
        assert data.target_counts == tuple(sum(row % 3 == label for row in rows) for label in range(3))
    else:
        assert data.target_counts[1] == 6 * sum(row % 3 > 0 for row in rows)
