"""Generates photographs of surfaces with and without defects, as an inspection station would take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multilevel.recipes.data.images import Source, SourceSplits
from multilevel.recipes.data.sources.surface_rendering import (
    CELLS,
    CORNERS,
    DEFECTS,
    TEXTURES,
    Camera,
    Values,
    rotate,
)
from multilevel.solvers.ranges import AtLeast, OneOf, Seed, check_value, require

CLASSES = ("good", *DEFECTS)
DEFECT_SHARE = 0.1  # of the parts
PHOTOGRAPHS = 4  # of each part
TRAIN_PARTS, TEST_PARTS = 1000, 1000  # fewer test parts would leave a recall with an error of a tenth
SIZE = 32  # pixels per side
CAMERAS = {
    "first": Camera(blur=0.5, gain=1.0, noise=3.0, vignetting=0.1),
    "second": Camera(blur=0.9, gain=0.8, noise=6.0, vignetting=0.4),
}
PartCount = Annotated[int, AtLeast(40)]  # enough for one part with each kind of defect
CameraName = Annotated[str, OneOf(*CAMERAS)]
PictureSize = Annotated[int, AtLeast(SIZE)]

SEED = 0
CLASS, PART, PICTURE = 1, 2, 3  # purposes of random generators
#: Ranges of the uniform draws for each part. A defect lies right of and below the centre by shares of half a side.
PART_RANGES = {
    "texture": (0, len(TEXTURES)),
    "direction": (0, np.pi),
    "pitch": (0, 1),
    "tone": (0.3, 0.7),
    "right": (-1, 1),
    "down": (-1, 1),
    "turn": (0, np.pi),
    "extent": (0, 1),
    "bend": (0, 1),
    "strength": (0.25, 0.5),
}
#: The same for each photograph: pose, in radians, as a share and in pixels, and light.
PICTURE_RANGES = {
    "turn": (-0.1, 0.1),
    "zoom": (-0.1, 0.1),
    "right": (-1.5, 1.5),
    "down": (-1.5, 1.5),
    "light": (0, 2 * np.pi),
    "slope": (0, 0.5),
    "contrast": (0.06, 0.14),
    "exposure": (0.7, 1.3),
}
_EDGE = 5  # pixels between the edge and the centre of a defect, so that no pose moves the centre out of the picture
_TOGETHER = 100_000  # pixels to render at once; arrays of more would not fit into a processor's cache


class SurfacesSource(Source):
    """Grey photographs of generated parts, four of each; ``groups`` has the number of the part.

    A part is brushed, cast, woven or tiled. One in ten has a defect; scratches, dents, stains and cracks are equally
    frequent. Photographs of a part differ in position, turn and distance, in the direction, slope and strength of the
    light, in contrast and in noise. The cameras see the same parts in the same light, with different optics and noise.

    Args:
        parts: number of parts, at least 40.
        camera: ``first`` or ``second``, which is less sharp, darker and noisier, and loses more light in the corners.
        seed: seed of the parts and photographs.
        size: pixels per side, at least 32. A larger photograph shows more of the surface; defects keep their size.

    Raises:
        SettingError: an unusable argument.

    >>> source = SurfacesSource(parts=40)
    >>> source.open(3).size, source.groups[:6].tolist(), source.labels.bincount().tolist()
    ((32, 32), [0, 0, 0, 0, 1, 1], [144, 4, 4, 4, 4])
    """

    groups: Tensor

    def __init__(self, parts: int, camera: str = "first", seed: int = 0, size: int = SIZE) -> None:
        check_value("parts", parts, PartCount)
        check_value("camera", camera, CameraName)
        check_value("seed", seed, Seed)
        check_value("size", size, PictureSize)
        self.camera = CAMERAS[camera]
        self.seed = seed
        self.size = size
        self.groups = torch.arange(parts).repeat_interleave(PHOTOGRAPHS)
        self.labels = torch.from_numpy(_draw_classes(parts, seed))[self.groups]

    def open(self, row: int) -> Image.Image:
        return Image.fromarray(self._pictures[row])

    def describe_row(self, row: int) -> str:
        return f"row {row} of surfaces"

    @cached_property
    def _pictures(self) -> np.ndarray:
        """uint8 [N, size, size]; many at once take a fraction of the time that they take one by one."""
        pictures = np.empty((len(self), self.size, self.size), np.uint8)
        for rows in torch.arange(len(self)).split(max(1, _TOGETHER // self.size**2)):
            pictures[rows] = self._take(rows.numpy())
        return pictures

    def _take(self, rows: np.ndarray) -> np.ndarray:
        """Take some of the photographs: uint8 [N, size, size] for int64 [N]."""
        numbers, positions = np.unique(self.groups.numpy()[rows], return_inverse=True)
        part = {name: values[positions] for name, values in _draw_parts(numbers, self.seed).items()}
        picture = _draw_pictures(rows, self.seed, self.size)
        side = self.size + 2 * self.camera.margin
        place = np.arange(side) - (side - 1) / 2
        across, down = (np.tile(place, side)[None], np.repeat(place, side)[None])
        steadiness = SIZE / self.size  # so that the edges of large pictures move no further
        zoom = 1 + steadiness * picture["zoom"]
        x, y = rotate(across, down, steadiness * picture["turn"])
        x, y = zoom * x + picture["right"], zoom * y + picture["down"]
        surface = 1 + picture["contrast"] * _texture(x, y, part)
        reach = self.size / 2 - _EDGE
        defect = _defect(x - reach * part["right"], y - reach * part["down"], part, picture, self.labels.numpy()[rows])
        towards_light, _ = rotate(across, down, picture["light"])
        light = picture["exposure"] * (1 + picture["slope"] * towards_light / self.size)
        radiance = (light * part["tone"] * (surface + defect)).clip(0, None)
        return self.camera.record(radiance.reshape(-1, side, side), picture["noise"])


def read_surfaces() -> SourceSplits:
    """Training and test photographs by the first camera, of different parts."""
    return SourceSplits(SurfacesSource(TRAIN_PARTS, seed=0), SurfacesSource(TEST_PARTS, seed=1), CLASSES)


def write_surfaces(folder: Path, parts: int, camera: str = "first", seed: int = 0, size: int = SIZE) -> None:
    """Write generated photographs as ``CLASS/seed2-part00012-3.png`` (part 12 of seed 2, photograph 3), for
    ``data=folder``; ``data.group='seed\\d+-part\\d+'`` keeps the photographs of a part together.

    Args:
        folder: a new or empty folder.
        parts, camera, seed, size: see ``SurfacesSource``. ``data=surfaces`` trains on parts of seed 0 and tests on
            parts of seed 1; other seeds give new parts.

    Raises:
        SettingError: the folder is not empty, or an unusable argument.

    >>> write_surfaces(folder / "shifted", parts=40, camera="second", seed=2)
    >>> sorted(path.name for path in (folder / "shifted").iterdir())
    ['crack', 'dent', 'good', 'scratch', 'stain']
    """
    source = SurfacesSource(parts, camera, seed, size)
    require("folder", str(folder), not folder.exists() or not any(folder.iterdir()), "a new or empty folder")
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for row, (part, label) in enumerate(zip(source.groups.tolist(), source.labels.tolist(), strict=True)):
        source.open(row).save(folder / CLASSES[label] / f"seed{seed}-part{part:05}-{row % PHOTOGRAPHS}.png")


def _texture(x: np.ndarray, y: np.ndarray, part: Values) -> np.ndarray:
    """The brightness of the parts' textures, [N, P]."""
    u, v = rotate(x, y, part["direction"])
    kinds, brightness = part["texture"][:, 0].astype(np.int64), np.empty_like(x)
    for kind, texture in enumerate(TEXTURES.values()):
        if (shown := kinds == kind).any():
            brightness[shown] = texture(u[shown], v[shown], part["lattice"][shown], part["pitch"][shown])
    return brightness


def _defect(x: np.ndarray, y: np.ndarray, part: Values, picture: Values, labels: np.ndarray) -> np.ndarray:
    """The change of brightness by the parts' defects, [N, P]."""
    change = np.zeros_like(x)
    for label, defect in enumerate(DEFECTS.values(), start=1):
        if (shown := labels == label).any():
            of_part = {name: values[shown] for name, values in part.items()}
            change[shown] = of_part["strength"] * defect(x[shown], y[shown], of_part, picture["light"][shown])
    return change


def _draw_classes(parts: int, seed: int) -> np.ndarray:
    """The class of each part, int64 [parts], with exact shares."""
    classes = np.zeros(parts, np.int64)
    defects = round(DEFECT_SHARE * parts)
    classes[:defects] = 1 + np.arange(defects) % len(DEFECTS)
    return np.random.default_rng([SEED, CLASS, seed]).permutation(classes)


def _draw_parts(numbers: np.ndarray, seed: int) -> Values:
    """The values of parts by their numbers, each ``[N, 1]``; ``steps`` ``[N, CORNERS]``; ``lattice``."""
    draws = [np.random.default_rng([SEED, PART, seed, number]) for number in numbers]
    values = _uniform(PART_RANGES, draws)
    values["steps"] = np.stack([random.standard_normal(CORNERS) for random in draws])
    values["lattice"] = np.stack([random.standard_normal((CELLS, CELLS)) for random in draws])
    return values


def _draw_pictures(rows: np.ndarray, seed: int, size: int) -> Values:
    """The values of photographs by their rows, each ``[N, 1]``; ``noise`` ``[N, size, size]``."""
    draws = [np.random.default_rng([SEED, PICTURE, seed, row]) for row in rows]
    values = _uniform(PICTURE_RANGES, draws)
    values["noise"] = np.stack([random.standard_normal((size, size)) for random in draws])
    return values


def _uniform(ranges: Mapping[str, tuple[float, float]], draws: Sequence[np.random.Generator]) -> Values:
    shares = np.stack([random.random(len(ranges)) for random in draws])
    return {name: low + (high - low) * shares[:, [column]] for column, (name, (low, high)) in enumerate(ranges.items())}
