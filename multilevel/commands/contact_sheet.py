"""A sheet of pictures with a line below each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from multilevel.recipes.export import ExportedModel
from multilevel.recipes.pictures.figures import new_figure, save_figure, styled
from multilevel.solvers.files import shown

COLUMNS, LARGEST, SIDE = 5, 100, 160  # pictures in a row and on the sheet; pixels of a thumbnail
WRAPPED = 30  # letters in a line


@styled
def draw_contact_sheet(target: Path | BinaryIO, pictures: Sequence[tuple[Path, str]], model: ExportedModel) -> None:
    """Draw the first hundred pictures, numbered, each with the name of its file and folder and a text.

    Args:
        target: the PNG to write.
        pictures: readable images, each with a text.
        model: the export that reads them.
    """
    drawn = pictures[:LARGEST]
    rows = -(-len(drawn) // COLUMNS)
    figure = new_figure(2.1 * COLUMNS, 2.9 * rows)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    for number, (axis, (file, text)) in enumerate(zip(axes, drawn, strict=False), start=1):
        axis.imshow(np.asarray(model.thumbnail(file, SIDE, channels=3)))
        name = shown("/".join(file.parts[-2:]))  # files of several folders may have one name
        axis.set_title(textwrap.fill(f"{number}. {name}", WRAPPED), fontsize=7)
        axis.set_xlabel(textwrap.fill(text, WRAPPED), fontsize=7)
        axis.set(xticks=[], yticks=[])
    save_figure(figure, target)
