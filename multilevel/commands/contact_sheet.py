"""A sheet of pictures with a line below each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from multilevel.recipes.data.pictures import to_colours, upright
from multilevel.recipes.pictures.figures import new_figure, save_figure, styled

COLUMNS, LARGEST, SIDE = 5, 100, 160  # pictures in a row and on the sheet; pixels of a thumbnail
WRAPPED = 30  # letters in a line


@styled
def draw_contact_sheet(path: Path, pictures: Sequence[tuple[Path, str]]) -> None:
    """Draw the first hundred pictures, numbered, each with the name of its file and folder and a text.

    Args:
        path: the PNG to write.
        pictures: readable images, each with a text.
    """
    shown = pictures[:LARGEST]
    rows = -(-len(shown) // COLUMNS)
    figure = new_figure(2.1 * COLUMNS, 2.9 * rows)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for number, (axis, (file, text)) in enumerate(zip(axes, shown, strict=False), start=1):
        axis.imshow(thumbnail(file))
        name = "/".join(file.parts[-2:])  # files of several folders may have one name
        axis.set_title(textwrap.fill(f"{number}. {name}", WRAPPED), fontsize=7)
        axis.set_xlabel(textwrap.fill(text, WRAPPED), fontsize=7)
        axis.set(xticks=[], yticks=[])
    save_figure(figure, path)


def thumbnail(file: Path) -> np.ndarray:
    """The whole picture, small: uint8 [H, W, 3]."""
    with Image.open(file) as picture:
        small = to_colours(upright(picture), 3)
        small.thumbnail((SIDE, SIDE))
        return np.asarray(small)
