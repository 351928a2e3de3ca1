"""Extreme sizes, orientations, layouts of folders, ranges of pixels, and settings."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trials.base import TINY, Named, command, write_images
from trials.picture_groups import Group, Picture, noise

SETTINGS = [*TINY, "evaluate=false", "steps=1", "output=run", "data.path=images"]
SIZES = ((1, 1), (1, 2), (2, 1), (20_000, 1), (1, 20_000), (3, 7000), (7919, 13), (16, 16), (17, 15), (2500, 2500))
SAVED = (
    ("png", "L"), ("png", "RGB"), ("png", "P"), ("png", "1"), ("png", "RGBA"), ("bmp", "RGB"), ("tif", "RGB"),
    ("jpg", "RGB"),
)  # fmt: skip
#: What undoes each orientation tag, on arrays [H, W, C]: the stored picture is turned by the inverse.
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
)


def trials(random: random.Random) -> Iterator[Named]:
    sized = [_sized(size, suffix, mode) for size in SIZES for suffix, mode in SAVED]
    yield from Group("sizes", sized).trials()
    yield from Group("orientations", [_tagged(tag, where) for tag in TURNED for where in TAGS]).trials()
    for tag in range(2, 9):
        yield f"extreme: masks of pictures with orientation {tag}", _masks(tag)
    for name, (expected, build) in LAYOUTS.items():
        yield f"extreme: {name}", _layout(expected, build)
    for name, pixels in RANGES.items():
        yield f"extreme: pixels of {name}", _range(pixels)
    for settings in EXTREME:
        yield f"extreme: {settings}", _settings(settings.split())


def _sized(size: tuple[int, int], suffix: str, mode: str) -> Picture:
    def write(path: Path) -> None:
        noise(*size, f"{size}{mode}").convert(mode).save(path)

    return Picture(
        f"extreme: {size[0]} x {size[1]} pixels, {suffix} {mode}", f"{size[0]}x{size[1]}{mode}.{suffix}", write
    )


def _exif(tag: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif.tobytes()


def _png(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _late(picture: Image.Image, tag: int) -> bytes:
    """A PNG whose tag comes after the pixels."""
    whole, chunks, place = _png(picture, exif=_exif(tag)), [], 8
    while place < len(whole):
        end = place + 12 + struct.unpack(">I", whole[place : place + 4])[0]
        chunks.append(whole[place:end])
        place = end
    chunks.sort(key=lambda chunk: (chunk[4:8] == b"IEND", chunk[4:8] == b"eXIf"))
    return whole[:8] + b"".join(chunks)


def _profile(picture: Image.Image, tag: int) -> bytes:
    """A PNG as ImageMagick writes it."""
    block = b"Exif\0\0" + _exif(tag).removeprefix(b"Exif\0\0")
    digits = block.hex()
    lines = "\n".join(digits[place : place + 72] for place in range(0, len(digits), 72))
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8d}\n{lines}\n", zip=True)
    return _png(picture, pnginfo=info)


def _saved(format: str, **options: Any) -> Callable[[Image.Image, int], bytes]:
    def save(picture: Image.Image, tag: int) -> bytes:
        buffer = io.BytesIO()
        chosen = {name: value(tag) for name, value in options.items() if callable(value)}
        picture.save(buffer, format, **{**options, **chosen})
        return buffer.getvalue()

    return save


TAGS: dict[str, tuple[str, Callable[[Image.Image, int], bytes]]] = {
    "EXIF of a PNG": (".png", _saved("PNG", exif=_exif)),
    "late EXIF of a PNG": (".png", _late),
    "ImageMagick's profile": (".png", _profile),
    "EXIF of a JPEG": (".jpg", _saved("JPEG", exif=_exif)),
    "XMP of a JPEG": (".jpg", _saved("JPEG", xmp=lambda tag: XMP.format(tag).encode())),
    "EXIF of a WebP": (".webp", _saved("WEBP", exif=_exif, lossless=True)),
    "the tag of a TIFF": (".tif", _saved("TIFF", tiffinfo=lambda tag: {274: tag})),
}


def _tagged(tag: int, where: str) -> Picture:
    suffix, save = TAGS[where]

    def write(path: Path) -> Image.Image:
        stored = noise(40, 20, f"{tag}{where}")
        path.write_bytes(save(stored, tag))
        with Image.open(io.BytesIO(save(stored, 1))) as decoded:  # a JPEG's pixels are not those that were saved
            pixels = np.asarray(decoded.convert("RGB"))
        return Image.fromarray(np.ascontiguousarray(_upright(pixels, tag)))

    return Picture(f"extreme: orientation {tag} in {where}", f"{tag}-{list(TAGS).index(where)}{suffix}", write)


def _upright(stored: np.ndarray, tag: int) -> np.ndarray:
    """What a viewer shows of stored pixels, by the definition of the tag."""
    if tag in (6, 8):
        return TURNED[14 - tag](stored)
    return TURNED[tag](stored)


def _masks(tag: int) -> Callable[[Path], list[str]]:
    """Stored turned with a tag, pictures and masks must train as the upright ones do, to the last bit."""

    def run(folder: Path) -> list[str]:
        generator = np.random.default_rng(tag)
        for number in range(24):
            kind = "good" if number % 2 else "scratch"
            mask = np.zeros((24, 16, 1), np.uint8)
            row, column = generator.integers(0, 16), generator.integers(0, 8)
            mask[row : row + 8, column : column + 8] = 0 if kind == "good" else 255
            upright = generator.integers(0, 120, (24, 16, 3), dtype=np.uint8)
            pixels = np.where(mask > 0, 255 - upright, upright)
            for name, turn, stored in (("plain", TURNED[1], 1), ("turned", TURNED[tag], tag)):
                for array, part, options in ((pixels, "", {"exif": _exif(stored)}), (mask.repeat(3, 2), "masks", {})):
                    place = folder / name / part / kind
                    if part and kind == "good":
                        continue
                    place.mkdir(parents=True, exist_ok=True)
                    picture = Image.fromarray(np.ascontiguousarray(turn(array)))
                    picture.convert("L" if part else "RGB").save(place / f"{number}.png", **options)
        problems, logs = [], []
        for name in ("plain", "turned"):
            words = [*SETTINGS, f"data.path={name}", f"output=run-{name}", "task=segmentation"]
            words.remove("evaluation.protocols=[knn]")
            problems += command(folder, "train", *words).problems(0)
            if problems:
                return problems
            lines = (folder / f"run-{name}" / "metrics.jsonl").read_text().splitlines()
            logs.append([json.loads(line).get("loss") for line in lines])
        return problems if logs[0] == logs[1] else [*problems, f"losses {logs[1][:3]} instead of {logs[0][:3]}"]

    return run


def _folders(*names: str, count: int = 10) -> Callable[[Path], None]:
    return lambda root: write_images(root, names, count) and None  # type: ignore[func-returns-value]


def _renamed(suffix: str, how: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        write_images(root)
        for file in root.rglob("*.png"):
            with Image.open(file) as picture:
                picture.save(file.with_suffix(suffix), how)
            file.unlink()

    return build


def _linked(root: Path) -> None:
    write_images(root.parent / "real")
    root.mkdir()
    for name in ("a", "b"):
        (root / name).symlink_to(root.parent / "real" / name)


def _also(path: str, content: bytes = b"x") -> Callable[[Path], None]:
    def build(root: Path) -> None:
        write_images(root)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content or next(root.rglob("*.png")).read_bytes())

    return build


def _empty_image(root: Path) -> None:
    write_images(root)
    (root / "a" / "empty.png").touch()


def _one_of_a_class(root: Path) -> None:
    write_images(root)
    for file in list((root / "b").iterdir())[1:]:
        file.unlink()


def _misnamed(root: Path) -> None:
    for file in write_images(root).rglob("*.png"):
        with Image.open(file) as picture:
            picture.save(file, "JPEG")


def _splits(*names: str) -> Callable[[Path], None]:
    return _folders(*(f"{split}/{name}" for split in names for name in TWO))


TWO = ("a", "b")
SPLITS = (
    ("train", "test"),
    ("Training", "Testing"),
    ("TRAIN", "TEST"),
    ("train", "valid"),
    ("training", "validation"),
    ("Train", "Val"),
    ("train", "testing"),
    ("Train", "dev"),
    ("train", "evaluation"),
)
#: The names of the classes and how many images the run knows, None where it must be refused, () where it may be.
LAYOUTS: dict[str, tuple[tuple[tuple[str, ...], int] | tuple[()] | None, Callable[[Path], Any]]] = {
    **{f"folders {train} and {test}": ((TWO, 40), _splits(train, test)) for train, test in SPLITS},
    "a class called train": (None, _folders("a", "b", "train")),
    "a class called test": (None, _folders("a", "b", "test")),
    "one class": ((), _folders("a", count=20)),
    "one image": (None, _folders("a", count=1)),
    "two images": (None, _folders("a", "b", count=1)),
    "a class of one image": ((), _one_of_a_class),
    "an empty class": ((TWO, 20), lambda root: (write_images(root), (root / "c").mkdir())),
    "no folder": (None, lambda root: None),
    "an empty folder": (None, lambda root: root.mkdir()),
    "folders without images": (None, lambda root: (root / "a").mkdir(parents=True)),
    "checkpoints of notebooks": ((TWO, 20), _also("a/.ipynb_checkpoints/000-checkpoint.png", b"")),
    "macOS's files": ((TWO, 20), _also("a/._000.png", b"")),
    "text files": ((TWO, 20), _also("a/notes.txt")),
    "a broken image": (None, _also("a/broken.png")),
    "an empty image": (None, _empty_image),
    "a class with =": ((("a", "b=1"), 20), _folders("a", "b=1")),
    "a class with brackets": ((("[b]", "a"), 20), _folders("a", "[b]")),
    "a class in Japanese": ((("傷", "良品"), 20), _folders("良品", "傷")),
    "links to folders": ((TWO, 20), _linked),
    "capital suffixes": ((TWO, 20), _renamed(".PNG", "PNG")),
    "GIF files": ((TWO, 20), _renamed(".gif", "GIF")),
    "JFIF files": ((TWO, 20), _renamed(".jfif", "JPEG")),
    "JPEG files called PNG": ((TWO, 20), _misnamed),
}


def _layout(expected: tuple[Any, ...] | None, build: Callable[[Path], Any]) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        build(folder / "images")
        outcome = command(folder, "train", *SETTINGS)
        problems = outcome.problems(*((2,) if expected is None else (0,) if expected else (0, 2)))
        if not expected or problems:
            return problems
        record = json.loads((folder / "run" / "data.json").read_text())
        count = sum(len(record[split]["labels"]) for split in ("train", "test") if record[split] is not None)
        got = (tuple(record["class_names"]), count)
        return problems if got == expected else [f"{got} instead of {expected}"]

    return run


def _ramp(scale: float, kind: Any, low: float = 0) -> Callable[[np.ndarray], np.ndarray]:
    def pixels(values: np.ndarray) -> np.ndarray:
        scaled = values / 255 * (scale - low) + low
        return (scaled if kind == np.float32 else scaled.round()).astype(kind)

    return pixels


def _with(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def pixels(values: np.ndarray) -> np.ndarray:
        result = (values / 255).astype(np.float32)
        result[5, 5] = value
        return result

    return pixels


RANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "16 bits": _ramp(65535, np.uint16),
    "14 bits in 16": _ramp(16383, np.uint16),
    "12 bits in 16": _ramp(4095, np.uint16),
    "10 bits in 16": _ramp(1023, np.uint16),
    "8 bits in 16": _ramp(255, np.uint16),
    "8 bits in 32": _ramp(255, np.int32),
    "16 bits in 32": _ramp(65535, np.int32),
    "fractions of 1": _ramp(1, np.float32),
    "floating point to 255": _ramp(255, np.float32),
    "floating point to 65535": _ramp(65535, np.float32),
    "signed values": _ramp(1000, np.int32, -1000),
    "fractions with NaN": _with(float("nan")),
    "fractions with an overshoot": _with(1.002),
}


def _range(pixels: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], list[str]]:
    """The mean over the set must be that of the 8-bit pictures that were stored in another scale."""

    def run(folder: Path) -> list[str]:
        generator, means = np.random.default_rng(0), []
        for name in ("a", "b"):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(10):
                values = generator.integers(0, 200 + number * 5, (16, 16)).astype(float)
                values[0, :2] = 0, 255
                means.append(values.mean() / 255)
                Image.fromarray(pixels(values)).save(folder / "images" / name / f"{number}.tif")
        outcome = command(folder, "train", *SETTINGS, "data.channels=1")
        if outcome.status:
            return outcome.problems(0)
        (mean,) = json.loads((folder / "run" / "data.json").read_text())["mean"]
        expected = float(np.mean(means))
        return [] if abs(mean - expected) < 0.03 else [f"a mean of {mean:.3f} instead of {expected:.3f}"]

    return run


EXTREME = (
    "data.image_size=1 data.patch_size=1",
    "data.image_size=2 data.patch_size=1",
    "data.image_size=256 data.patch_size=64",
    "data.batch_size=1",
    "data.batch_size=1000000000",
    "data.limit=1",
    "data.limit=4",
    "seed=4294967295",
    "mask.ratio=1e-9",
    "mask.ratio=0.999999",
    "data.test_share=0",
    "data.test_share=0.99",
    "data.validation_share=0.99",
    "data.memory_gib=0",
    "data.memory_gib=1e30",
    "data.max_pixels=1",
    "model.width=4 model.heads=1",
    "data.tiles=1",
    "data.tiles=50",
    "checkpoint.every=1000000000000",
    "levels.finetune.learning_rate=1e30",
    "data.crop_scale=1e-9",
    "data.split_seed=99999999999",
    "levels.mask.weight_decay=1e30",
    "mask.temperature=1e-30",
)


def _settings(settings: list[str]) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        write_images(folder / "images")
        outcome = command(folder, "train", *SETTINGS, *settings)
        problems = outcome.problems(0, 2)
        if outcome.status == 0 and not (folder / "run" / "summary.json").exists():
            problems.append("no summary")
        shutil.rmtree(folder / "run", ignore_errors=True)
        return problems

    return run
