"""Targets: what a task learns of each image, one class for each value of ``Task.targets``."""

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
    """Targets of the images of a set.

    Attributes:
        lists: whether an image has a list of labels in place of one.
        marked: whether places in the images are marked, by masks or by boxes.
        boxed: whether they are marked by boxes.
    """

    lists: ClassVar[bool] = False
    marked: ClassVar[bool] = False
    boxed: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def check(cls, sources: SourceSplits, settings: DataSettings) -> None:
        """Refuse a set that lacks these targets.

        Raises:
            DataError: no masks, boxes or lists of labels.
            SettingError: ``mask_classes=labels`` without labels, or with more than a mask has numbers for.
        """

    @classmethod
    def label(cls, sources: SourceSplits, settings: DataSettings) -> SourceSplits:
        """Sources with the labels that parts of the set are cut in proportion to.

        Raises:
            DataError: a broken mask.
        """
        return sources

    @classmethod
    def open(cls, sources: SourceSplits, settings: DataSettings, open_images: OpenImages) -> Pair:
        """Targets of the training and of the test images; one object where the test is cut from the training images.

        Args:
            sources: the set.
            settings: of it.
            open_images: for targets that are images themselves.
        """
        train = cls(sources.train, settings)
        return train, train if sources.test is None else cls(sources.test, settings)

    @abstractmethod
    def __init__(self, source: Source, settings: DataSettings) -> None:
        """The targets of a source, of which nothing is read yet."""

    @classmethod
    @abstractmethod
    def class_names(cls, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
        """The classes, by number.

        Args:
            sources: the set.
            settings: of it.
            counts: int64, how often each class occurs in the training images.

        Raises:
            DataError: nothing is marked in any training image.
        """

    @abstractmethod
    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Targets ``[B, ...]`` of the images ``indices`` (int64 ``[B]``), moved as the images were.

        Raises:
            DataError: a broken mask or a box outside its image, by the name of its file or row.
        """

    @abstractmethod
    def count(self, indices: Tensor) -> Tensor:
        """How often each class occurs in the images ``indices``: int64, up to the last class that does."""


class Labels(Targets):
    """int64 tensor ``[N]``, a label an image; -1 without."""

    def __init__(self, source: Source, settings: DataSettings) -> None:
        self.values = source.labels if source.multilabels is None else source.multilabels

    @classmethod
    def check(cls, sources: SourceSplits, settings: DataSettings) -> None:
        """Without labels there are no targets, which is no error: an encoder can be pretrained."""

    @classmethod
    def class_names(cls, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
        return sources.class_names

    def of(self, indices: Tensor, geometry: Geometry | None = None) -> Tensor:
        return self.values[indices]

    def count(self, indices: Tensor) -> Tensor:
        values = self.values[indices]
        return values.sum(0).long() if values.ndim > 1 else torch.bincount(values)


class LabelLists(Labels):
    """float32 tensor ``[N, classes]`` of 0 and 1, several labels an image."""

    lists = True

    @classmethod
    def check(cls, sources: SourceSplits, settings: DataSettings) -> None:
        if sources.train.multilabels is None:
            expected = "lists of labels for the task to learn: they come from a table"
            raise DataError(f"data={settings.name} has no {expected}")

    @classmethod
    def class_names(cls, sources: SourceSplits, settings: DataSettings, counts: Tensor) -> tuple[str, ...]:
        return sources.target_names


Pair = tuple[Targets, Targets]
#: From a set and a number of channels to its training and its test images.
OpenImages = Callable[[SourceSplits, int], tuple[Images, Images]]
