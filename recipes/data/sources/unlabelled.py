"""Adds a folder of images without labels to a data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from multilevel.recipes.data.images import Source, SourceSplits
from multilevel.recipes.data.sources.folders import FolderSource
from multilevel.recipes.data.sources.listing import images_below
from multilevel.solvers.errors import DataError, SettingError

PREFIX = "unlabelled:"  # of the names of added images


class WithUnlabelled(Source):
    """The images of a source, followed by those of a folder, which have no label, mask or boxes.

    Args:
        labelled: the source.
        added: the images of the folder.
    """

    def __init__(self, labelled: Source, added: FolderSource) -> None:
        self.labelled, self.added = labelled, added
        self.labels = torch.cat([labelled.labels, added.labels])
        self.has_masks = labelled.has_masks
        self.left_out = Counter(labelled.left_out) + Counter(added.left_out)
        self.nested = labelled.nested
        self.names = [
            *map(labelled.image_name, range(len(labelled))),
            *(f"{PREFIX}{added.image_name(row)}" for row in range(len(added))),
        ]
        if labelled.groups is not None:
            first = int(labelled.groups.max()) + 1
            self.groups = torch.cat([labelled.groups, first + torch.arange(len(added))])
        if labelled.multilabels is not None:
            empty = labelled.multilabels.new_zeros(len(added), labelled.multilabels.shape[1])
            self.multilabels = torch.cat([labelled.multilabels, empty])

    def limit_pixels(self, count: int) -> None:
        for source in (self.labelled, self.added):
            source.limit_pixels(count)

    def _place(self, row: int) -> tuple[Source, int]:
        count = len(self.labelled)
        return (self.labelled, row) if row < count else (self.added, row - count)

    def open(self, row: int) -> Image.Image:
        source, place = self._place(row)
        return source.open(place)

    def describe_row(self, row: int) -> str:
        source, place = self._place(row)
        return source.describe_row(place)

    def stamp(self, row: int) -> int:
        source, place = self._place(row)
        return source.stamp(place)

    def contents(self, row: int) -> bytes:
        source, place = self._place(row)
        return source.contents(place)

    def group_keys(self, setting: str) -> list[str | None]:
        return [*self.labelled.group_keys(setting), *[None] * len(self.added)]

    def open_mask(self, row: int) -> Image.Image | None:
        source, place = self._place(row)
        return source.open_mask(place) if source is self.labelled else None

    def describe_mask(self, row: int) -> str:
        source, place = self._place(row)
        return source.describe_mask(place)


def with_unlabelled(sources: SourceSplits, folder: str) -> SourceSplits:
    """A data set with the images below ``folder``, in whatever subfolders they are.

    Raises:
        SettingError: there is no such folder.
        DataError: it holds no images, or boxes cannot be combined with unlabelled images.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise SettingError("data.unlabelled", folder, "an existing folder of images")
    files = images_below(root)
    if not files:
        raise DataError(f"data.unlabelled={folder} holds no images")
    if sources.train.boxes is not None:
        raise DataError("data.unlabelled: a data set with boxes takes no further images without boxes")
    return replace(sources, train=WithUnlabelled(sources.train, FolderSource(root, {}, (), files, {})))


def folders_of(names: list[str]) -> Counter[str]:
    """The number of added images in each folder directly below ``data.unlabelled``.

    >>> folders_of(["good/1.png", "unlabelled:line 2/1.png", "unlabelled:line 2/old/2.png", "unlabelled:3.png"])
    Counter({'line 2': 2, '(top)': 1})
    """
    added = [name.removeprefix(PREFIX).split("/") for name in names if name.startswith(PREFIX)]
    return Counter(parts[0] if len(parts) > 1 else "(top)" for parts in added)
