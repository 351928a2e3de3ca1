"""Image files of all formats and modes with changed, missing and added bytes, and some whole ones."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, features

from trials.base import Named
from trials.picture_groups import Group, Picture, noise

COMPRESSIONS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
COUNT, TOGETHER = 1500, 100
Mutation = Callable[[bytes, random.Random, bytes], bytes]
#: Suffix, Pillow's format, mode, and options of saving.
VARIANTS: list[tuple[str, str, str, dict[str, Any]]] = [
    *((".png", "PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    (".png", "PNG", "P", {"transparency": 3}),
    (".png", "PNG", "RGB", {"transparency": (0, 0, 0)}),
    *((".jpg", "JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
    (".jpeg", "JPEG", "RGB", {"progressive": True}),
    (".jpg", "JPEG", "RGB", {"orientation": 6}),
    *((".bmp", "BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    (".dib", "DIB", "RGB", {}),
    *((".tif", "TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F")),
    *((".tiff", "TIFF", "RGB", {"compression": name}) for name in COMPRESSIONS),
    *((".gif", "GIF", mode, {}) for mode in ("L", "P", "RGB")),
    *((".webp", "WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)),
    (".pbm", "PPM", "1", {}),
    (".pgm", "PPM", "L", {}),
    (".ppm", "PPM", "RGB", {}),
    *([(".avif", "AVIF", "RGB", {})] if features.check("avif") else []),
    *([(".jp2", "JPEG2000", mode, {}) for mode in ("L", "RGB", "RGBA")] if features.check("jpg_2000") else []),
]  # fmt: skip


def trials(random: random.Random) -> Iterator[Named]:
    for number in range(COUNT // TOGETHER):
        pictures = [_picture(number * TOGETHER + place, random) for place in range(TOGETHER)]
        yield from Group(f"mutated-{number}", pictures).trials()


def _picture(number: int, generator: random.Random) -> Picture:
    suffix, format, mode, options = generator.choice(VARIANTS)
    how, seed = generator.choice(list(MUTATIONS)), str(generator.getrandbits(64))
    other = generator.choice(VARIANTS)

    def write(path: Path) -> None:
        whole = encoded(format, mode, options, seed)
        path.write_bytes(MUTATIONS[how](whole, random.Random(seed), encoded(*other[1:], seed)))

    about = ", ".join(map(str, [f"{format} {mode}", *options]))
    return Picture(f"image {number:04}: {about}, {how}", f"{number:04}{other[0] if how == SUFFIX else suffix}", write)


def encoded(format: str, mode: str, options: dict[str, Any], seed: str) -> bytes:
    """A small picture as a file."""
    generator = random.Random(seed)
    picture = noise(generator.randint(1, 40), generator.randint(1, 40), seed)
    if mode == "I;16":
        picture = Image.frombytes("I;16", picture.size, generator.randbytes(2 * picture.width * picture.height))
    elif mode in ("LA", "RGBA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.frombytes("L", picture.size, generator.randbytes(picture.width * picture.height)))
    elif mode == "LAB":
        picture = Image.frombytes("LAB", picture.size, generator.randbytes(3 * picture.width * picture.height))
    else:
        picture = picture.convert(mode)
    chosen = dict(options)
    if "orientation" in chosen:
        exif = Image.Exif()
        exif[0x0112] = chosen.pop("orientation")
        chosen["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    picture.save(buffer, format, **chosen)
    return buffer.getvalue()


def _flip(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    content = bytearray(whole)
    for _ in range(generator.randint(1, 8)):
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(content)


def _flip_header(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    content = bytearray(whole)
    content[generator.randrange(min(60, len(content)))] = generator.randrange(256)
    return bytes(content)


def _cut(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    return whole[: generator.randrange(len(whole))]


def _cut_out(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    place = generator.randrange(len(whole))
    return whole[:place] + whole[place + generator.randint(1, 40) :]


def _insert(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    place = generator.randrange(len(whole))
    return whole[:place] + generator.randbytes(generator.randint(1, 40)) + whole[place:]


def _zeros(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    place, length = generator.randrange(len(whole)), generator.randint(1, 200)
    return whole[:place] + bytes(len(whole[place : place + length])) + whole[place + length :]


def _repeat(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    place = generator.randrange(len(whole))
    return whole[:place] + whole[max(0, place - 50) : place] * 3 + whole[place:]


def _splice(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    return whole[: generator.randrange(len(whole))] + other[generator.randrange(len(other)) :]


def _large(whole: bytes, generator: random.Random, other: bytes) -> bytes:
    place = generator.randrange(min(40, len(whole)))
    return whole[:place] + b"\xff\xff" + whole[place + 2 :]


SUFFIX = "another suffix"
MUTATIONS: dict[str, Mutation] = {
    "whole": lambda whole, generator, other: whole,
    SUFFIX: lambda whole, generator, other: whole,
    "bytes after its end": lambda whole, generator, other: whole + generator.randbytes(100),
    "bits flipped": _flip,
    "a byte of its header": _flip_header,
    "large numbers in its header": _large,
    "cut": _cut,
    "bytes cut out": _cut_out,
    "bytes put in": _insert,
    "bytes of zero": _zeros,
    "bytes repeated": _repeat,
    "the end of another file": _splice,
    "only its first 20 bytes": lambda whole, generator, other: whole[:20],
    "empty": lambda whole, generator, other: b"",
    "random bytes": lambda whole, generator, other: generator.randbytes(200),
}
