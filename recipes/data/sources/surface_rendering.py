"""Textures, defects and cameras of the generated surfaces, in numpy.

Each function handles many photographs at once: arrays ``[N, P]`` have a value for each of P points of N photographs,
``[N, 1]`` one value per photograph. Lengths are in pixels, angles in radians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CELLS = 64  # side of the periodic lattice of random values that makes each part irregular; a power of 2
CORNERS = 7  # of a crack
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Camera:
    """A camera's optics and sensor.

    Attributes:
        blur: standard deviation of the point spread function, in pixels.
        gain: factor of all grey values.
        noise: standard deviation in mid-grey, in grey values of 0 to 255; it grows with the square root of the light.
        vignetting: share of the light that the corners lose.
    """

    blur: float
    gain: float
    noise: float
    vignetting: float

    @property
    def margin(self) -> int:
        """Pixels beyond the edge of the picture from which light is blurred into it."""
        return int(np.ceil(3 * self.blur))

    def record(self, radiance: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Take photographs.

        Args:
            radiance: light from the surfaces, 1 for white, [N, S + 2 * margin, S + 2 * margin].
            noise: independent standard normal values, [N, S, S].

        Returns:
            uint8 array [N, S, S].

        >>> pinhole = Camera(blur=0.1, gain=0.5, noise=0.0, vignetting=0.0)
        >>> pinhole.record(np.ones((1, 4, 4)), np.zeros((1, 2, 2)))
        array([[[128, 128],
                [128, 128]]], dtype=uint8)
        """
        size = noise.shape[-1]
        weights = np.exp(-0.5 * (np.arange(-self.margin, self.margin + 1) / self.blur) ** 2)
        weights /= weights.sum()
        rows: np.ndarray = sum(weight * radiance[:, start : start + size] for start, weight in enumerate(weights))
        light: np.ndarray = sum(weight * rows[:, :, start : start + size] for start, weight in enumerate(weights))
        squared = ((np.arange(size) + 0.5) / size * 2 - 1) ** 2
        corners = (squared[:, None] + squared) / 2  # 0 in the centre, about 1 in a corner
        light = (self.gain * (1 - self.vignetting * corners) * light).clip(0, None)
        return (255 * light + self.noise * np.sqrt(2 * light) * noise).clip(0, 255).round().astype(np.uint8)


def rotate(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates along and across the direction ``angle``."""
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def smooth_noise(u: np.ndarray, v: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Interpolate a lattice of values [N, CELLS, CELLS], repeated periodically, at the points: [N, P]."""
    left, top = np.floor(u), np.floor(v)
    right, lower = u - left, v - top
    right, lower = right * right * (3 - 2 * right), lower * lower * (3 - 2 * lower)
    column, row = left.astype(np.int64), top.astype(np.int64)
    flat, last = lattice.reshape(len(lattice), -1), CELLS - 1

    def between(row: np.ndarray) -> np.ndarray:
        start = (row & last) * CELLS
        values = [np.take_along_axis(flat, start + (column + step & last), axis=1) for step in (0, 1)]
        return values[0] + right * (values[1] - values[0])

    upper = between(row)
    return upper + lower * (between(row + 1) - upper)


# Textures: brightness with mean about 0 and deviation about 1, [N, P]. ``u`` and ``v`` run along and across the
# texture's direction, ``pitch`` [N, 1] is its coarseness from 0 to 1. Offsets of 31.5 read other values of the lattice.


def _brushed(u: np.ndarray, v: np.ndarray, lattice: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    coarse, fine = smooth_noise(u / 24, v / (1.2 + pitch), lattice), smooth_noise(u / 10 + 31.5, v / 0.8, lattice)
    return 1.3 * coarse + 0.9 * fine


def _cast(u: np.ndarray, v: np.ndarray, lattice: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    u, v = (coordinate / (1.5 + 1.5 * pitch) for coordinate in (u, v))
    return 1.2 * smooth_noise(u, v, lattice) + 0.7 * smooth_noise(2 * u + 31.5, 2 * v, lattice)


def _woven(u: np.ndarray, v: np.ndarray, lattice: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    width = 3 + 2.5 * pitch
    a = u / width + 0.15 * smooth_noise(u / 8, v / 8, lattice)
    b = v / width + 0.15 * smooth_noise(u / 8 + 31.5, v / 8, lattice)
    along, across = np.abs(np.sin(np.pi * b)), np.abs(np.sin(np.pi * a))
    over = (np.floor(a) + np.floor(b)) % 2 == 0
    threads = np.where(over, along * (0.6 + 0.4 * across), 0.8 * across * (0.6 + 0.4 * along))
    return 5 * (threads - 0.5) + 0.4 * smooth_noise(u, v, lattice)


def _tiled(u: np.ndarray, v: np.ndarray, lattice: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    width = 8 + 6 * pitch
    b = v / width
    row = np.floor(b)
    a = u / width + 0.5 * (row % 2)
    column = np.floor(a)
    edge = width * np.minimum(0.5 - np.abs(a - column - 0.5), 0.5 - np.abs(b - row - 0.5))
    joint = 1 / (1 + np.exp(6 * (edge - 0.8)))
    grain = smooth_noise(u / 1.3, v / 1.3, lattice)
    return 0.4 + 0.6 * smooth_noise(column, row, lattice) + 0.3 * grain - 2.5 * joint


TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "brushed": _brushed,
    "cast": _cast,
    "woven": _woven,
    "tiled": _tiled,
}


# Defects: the change of brightness, [N, P]. ``x`` and ``y`` are relative to the defect's centre, ``light`` [N, 1] is
# the direction of the light. Of ``part``, ``turn`` [N, 1] is the defect's direction, ``extent`` and ``bend`` [N, 1] lie
# between 0 and 1, and ``steps`` [N, CORNERS] are standard normal values.


def _scratch(x: np.ndarray, y: np.ndarray, part: Values, light: np.ndarray) -> np.ndarray:
    """A groove, which shows as a stripe or as a bright and a dark flank, depending on the light."""
    along, across = rotate(x, y, part["turn"])
    across = (across - 0.04 * (part["bend"] - 0.5) * along**2) / 0.9
    window = 1 / (1 + np.exp(np.abs(along) - (7 + 6 * part["extent"])))
    angle = light - part["turn"]
    return window * np.exp(-(across**2)) * (np.cos(angle) + 2 * np.sin(angle) * across)


def _dent(x: np.ndarray, y: np.ndarray, part: Values, light: np.ndarray) -> np.ndarray:
    """A shallow hollow, dark on the side of the light and bright on the other."""
    along, across = rotate(x, y, part["turn"])
    radius = 3 + 3 * part["extent"]
    across = across / (0.7 + 0.3 * part["bend"])
    towards_light, _ = rotate(x, y, light)
    return -2 * towards_light / radius * np.exp(-(along**2 + across**2) / radius**2)


def _stain(x: np.ndarray, y: np.ndarray, part: Values, light: np.ndarray) -> np.ndarray:
    """An irregular spot with a rim, dark (oil) or light (a residue)."""
    outline = (1 + 0.3 * smooth_noise(x / 4 + 17.5, y / 4, part["lattice"])).clip(0.5, 1.5)
    distance = np.sqrt(x**2 + y**2) / ((3 + 3 * part["extent"]) * outline)
    spot = 0.6 / (1 + np.exp(8 * (distance - 1))) + 0.5 * np.exp(-(((distance - 0.9) / 0.2) ** 2))
    return np.where(part["bend"] < 0.5, -spot, spot)


def _crack(x: np.ndarray, y: np.ndarray, part: Values, light: np.ndarray) -> np.ndarray:
    """A thin dark line with corners, finer towards one end."""
    angles = part["turn"] + 0.6 * part["steps"]
    step = (12 + 8 * part["extent"]) / (CORNERS - 1)
    corner_x, corner_y = np.cumsum(step * np.cos(angles), axis=1), np.cumsum(step * np.sin(angles), axis=1)
    x, y = x + corner_x.mean(1, keepdims=True), y + corner_y.mean(1, keepdims=True)
    depth = np.zeros_like(x)
    for number in range(CORNERS - 1):  # the nearest point of each straight piece
        along, across = rotate(x - corner_x[:, [number]], y - corner_y[:, [number]], angles[:, [number + 1]])
        squared = (along - along.clip(0, step)) ** 2 + across**2
        depth = np.maximum(depth, np.exp(-squared / (0.9 - 0.08 * number) ** 2))
    return -depth


DEFECTS: dict[str, Callable[..., np.ndarray]] = {"scratch": _scratch, "dent": _dent, "stain": _stain, "crack": _crack}
