"""The interface of targets, with one class for each value of ``Task.targets``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from multilevel.recipes.data.augment import Geometry
from multilevel.recipes.data.images import Images, Source, SourceSplits
from multilevel.recipes.data.settings import DataSettings
from multilevel.solvers.errors import DataError


class Targets(ABC):
    """Targets of a data set's images.

    Attributes:
        lists: whether an image has a list of labels instead of one label.
        marked: whether locations in the images are marked, by masks or boxes.
        boxed: whether locations are marked by boxes.
    """

    lists: ClassVar[bool] = False
    marked: ClassVar[bool] = False
    boxed: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def check(cls, sources: SourceSplits, settings: DataSettings) -> None:
        """Reject a data set without these targets.

        Raises:
            DataError: no masks, boxes or lists of labels.
            SettingError: ``mask_classes=labels`` without labels, or with more classes than a mask can number.
        """

    @classmethod
    def label(cls, sources: SourceSplits, settings: DataSettings) -> SourceSplits:
        """Sources with the labels by which the data set is split.

        Raises:
            DataError: a broken mask.
        """
        return sources

    @classmethod
    def open(cls, sources: SourceSplits, settings: DataSettings, open_images: OpenImages) -> Pair:
        """Open the targets of the training and test images; the same object twice if the test part is split off the
        training images.

        Args:
            sources: the set.
            settings: settings of the data set.
            open_images: opens targets that are images themselves.
        """
        train = cls(sources.train, settings)
        return train, train if sources.test is None else cls(sources.test, settings)

    @abstractmethod
    def __init__(self, source: Source, settings: DataSettings) -> None:
        """Create the targets of a source without reading anything."""

    @classmethod
    @abstractmethod
    def class_names(cls, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
        """The classes, by number.

        Args:
            sources: the set.
            settings: settings of the data set.
            counts: int64, occurrences of each class in the training images.

        Raises:
            DataError: no training image has any mark.
        """

    @abstractmethod
    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Targets ``[B, ...]`` of the images ``indices`` (int64 ``[B]``), transformed like the images.

        Raises:
            DataError: a broken mask or a box outside its image, by the name of its file or row.
        """

    @abstractmethod
    def count(self, indices: Tensor) -> Tensor:
        """Count the occurrences of each class in the images ``indices``: int64, up to the last class that occurs."""


class Labels(Targets):
    """int64 tensor ``[N]``, one label per image; -1 without."""

    def __init__(self, source: Source, settings: DataSettings) -> None:
        self.values = source.labels if source.multilabels is None else source.multilabels

    @classmethod
    def check(cls, sources: SourceSplits, settings: DataSettings) -> None:
        """Accept a data set without labels, since an encoder can be pretrained without targets."""

    @classmethod
    def class_names(cls, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
        return sources.class_names

    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        return self.values[indices]

    def count(self, indices: Tensor) -> Tensor:
        values = self.values[indices]
        return values.sum(0).long() if values.ndim > 1 else torch.bincount(values)


class LabelLists(Labels):
    """float32 tensor ``[N, classes]`` of 0 and 1, several labels per image."""

    lists = True

    @classmethod
    def check(cls, sources: SourceSplits, settings: DataSettings) -> None:
        if sources.train.multilabels is None:
            expected = "lists of labels for this task, from a table"
            raise DataError(f"data={settings.name} has no {expected}")

    @classmethod
    def class_names(cls, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
        return sources.target_names


Pair = tuple[Targets, Targets]
#: Maps a data set and a number of channels to its training and test images.
OpenImages = Callable[[SourceSplits, int], tuple[Images, Images]]
