"""Orientation tags, wherever they stand, and masks and boxes that are turned with their picture."""

from __future__ import annotations

import io
import struct

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from multilevel.recipes.data import load_data
from multilevel.recipes.data.pictures import to_pixels, upright
from multilevel.recipes.data.targets.boxes import turn_boxes

#: What a viewer does with the stored rows for each tag, by Exif 2.32, section 4.6.4, in numpy.
VIEWED = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}
STORED = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def exif(tag):
    block = Image.Exif()
    block[0x0112] = tag
    return block.tobytes()


def xmp(tag):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{tag}"/></rdf:RDF></x:xmpmeta>'
    )


def saved(file_format, **options):
    stream = io.BytesIO()
    Image.fromarray(STORED).save(stream, file_format, **options)
    return stream.getvalue()


def late_exif(tag):
    """A PNG file with its eXIf chunk after the pixels."""
    data, chunks, position = saved("PNG", exif=exif(tag)), [], 8
    while position < len(data):
        length = struct.unpack(">I", data[position : position + 4])[0]
        chunks.append(data[position : position + 12 + length])
        position += 12 + length
    order = {b"eXIf": 1, b"IEND": 2}
    return data[:8] + b"".join(sorted(chunks, key=lambda chunk: order.get(chunk[4:8], 0)))


def raw_profile(tag):
    """A PNG file as ImageMagick writes the EXIF block of a photograph."""
    block, info = b"Exif\0\0" + exif(tag).removeprefix(b"Exif\0\0"), PngInfo()
    lines = [block.hex()[start : start + 72] for start in range(0, 2 * len(block), 72)]
    info.add_text("Raw profile type exif", "\n".join(["", "exif", f"{len(block):8d}", *lines, ""]), zip=True)
    return saved("PNG", pnginfo=info)


def png_xmp(tag):
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(tag))
    return saved("PNG", pnginfo=info)


FILES = {
    "PNG": lambda tag: saved("PNG", exif=exif(tag)),
    "PNG, late": late_exif,
    "PNG, ImageMagick": raw_profile,
    "PNG, XMP": png_xmp,
    "WebP": lambda tag: saved("WEBP", lossless=True, exif=exif(tag)),
    "TIFF": lambda tag: saved("TIFF", tiffinfo={0x0112: tag}),
    "TIFF, compressed": lambda tag: saved("TIFF", tiffinfo={0x0112: tag}, compression="tiff_lzw"),
}


@pytest.mark.parametrize("tag", VIEWED)
@pytest.mark.parametrize("file", FILES)
def test_pictures_are_read_as_they_are_viewed(file, tag):
    picture = upright(Image.open(io.BytesIO(FILES[file](tag))))
    assert np.array_equal(np.asarray(picture), VIEWED[tag](STORED))


@pytest.mark.parametrize("options", [{"exif": exif(6)}, {"xmp": xmp(6).encode()}])
def test_photographs_are_read_as_they_are_viewed(options):
    stored = Image.open(io.BytesIO(saved("JPEG", quality=95)))
    picture = upright(Image.open(io.BytesIO(saved("JPEG", quality=95, **options))))
    assert np.array_equal(np.asarray(picture), VIEWED[6](np.asarray(stored)))


def test_sixteen_bits_are_turned_too():
    stream, values = io.BytesIO(), np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(values).save(stream, "PNG", exif=exif(8))
    assert np.array_equal(to_pixels(Image.open(stream), 8, 1)[0], np.round(VIEWED[8](values) / 65535 * 255))


@pytest.mark.parametrize("tag", VIEWED)
def test_boxes_are_turned_like_pixels(tag):
    marked = np.zeros((6, 10), bool)
    marked[1:3, 4:9] = True
    rows, columns = np.nonzero(VIEWED[tag](marked))
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 5]
    assert turn_boxes(np.array([[4.0, 1, 9, 3, 5]]), (10, 6), tag).tolist() == [expected]


def write_marked(root, tag, side, mask_as_viewed):
    """Six pictures with a white rectangle, which the mask repeats as stored or as viewed, and six without."""
    for row in range(12):
        stored = np.zeros(side, np.uint8)
        stored[1:3, 4 + row % 2 : 8] = 255 if row < 6 else 0
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(stored).save(root / "images" / f"{row}.png", exif=exif(tag))
        mask = VIEWED[tag](stored) if mask_as_viewed else stored
        Image.fromarray(np.ascontiguousarray(mask)).save(root / "masks" / f"{row}.png")
    return root


@pytest.mark.parametrize("tag", VIEWED)
@pytest.mark.parametrize(("side", "mask_as_viewed"), [((8, 8), False), ((8, 12), False), ((8, 12), True)])
def test_masks_mark_what_they_marked_in_the_file(settings, tmp_path, tag, side, mask_as_viewed):
    if mask_as_viewed and tag < 5:
        return  # a mask of the same shape is taken for one of the stored pixels
    root = write_marked(tmp_path / "marked", tag, side, mask_as_viewed)
    options = {"path": str(root), "channels": 1, "fit": "stretch", "near_copies": "keep", "image_size": 24}
    data = load_data(settings(**options), targets="mask")
    for part in (data.train, data.test):
        every = torch.arange(len(part))
        shown, marked = part.pixels(every)[:, 0] > 127, part.targets(every) == 1
        assert (shown != marked).float().mean() < 0.03  # the filters of pictures and masks differ at edges
        assert marked.any()


@pytest.mark.parametrize("tag", [3, 6])
def test_boxes_of_a_table_are_those_of_the_stored_pixels(settings, tmp_path, tag):
    cells, boxes = [], []
    for row in range(12):
        stored, stream = np.zeros((8, 12), np.uint8), io.BytesIO()
        stored[1:4, 4 + row % 2 : 10] = 255 if row < 6 else 0
        Image.fromarray(stored).save(stream, "PNG", exif=exif(tag))
        cells.append({"bytes": stream.getvalue(), "path": None})
        boxes.append([[4.0 + row % 2, 1.0, 6.0 - row % 2, 3.0]] if row < 6 else [])
    kinds = datasets.Features(
        {"image": datasets.Image(), "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float32")))}
    )
    datasets.Dataset.from_dict({"image": cells, "boxes": boxes}, kinds).to_parquet(str(tmp_path / "train.parquet"))
    options = {"path": str(tmp_path), "channels": 1, "fit": "stretch", "near_copies": "keep", "image_size": 24}
    data = load_data(settings(**options), targets="boxes")
    for position in range(len(data.train)):
        index = torch.tensor([position])
        rows, columns = np.nonzero(data.train.pixels(index)[0, 0].numpy() > 127)
        if not len(rows):
            assert (data.train.targets(index) == -1).all()
            continue
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert abs(data.train.targets(index)[0, 0, :4].numpy() - seen).max() <= 1
