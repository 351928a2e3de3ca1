"""The record of the images that a run was trained on: ``data.json`` in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multilevel.recipes.data.images import CHANGED, Source, SourceSplits
from multilevel.recipes.data.rows import Rows
from multilevel.recipes.data.settings import DataSettings
from multilevel.recipes.data.strata import UNLABELLED
from multilevel.solvers.errors import DataError, SettingError
from multilevel.solvers.files import parse_json, read_whole

VERSION = 1
#: The letter of each part in ``ImageRecord.parts``; ``pretrain`` also has the images of ``finetune``.
LETTERS = {"finetune": "f", "mask": "m", "validation": "v", "test": "t", "pretrain": "u"}
UNUSED = "-"


@dataclass(frozen=True)
class ImageRecord:
    """The images of one source.

    Attributes:
        names: file names below ``data.path``; ``None``: images are named by their rows.
        labels: of each image, a position in ``DataRecord.class_names``, or -1.
        stamps: of each image, see ``Source.stamp``.
        parts: a letter for each image: finetune, mask, validation, test, unlabelled (only for pretraining), - (unused).
        groups: of each image, see ``Source.groups``.
        contents: digest of the contents of each image that had been read.
    """

    names: Sequence[str] | None
    labels: Sequence[int]
    stamps: Sequence[int]
    parts: str
    groups: Sequence[int] | None
    contents: Sequence[str | None]

    @classmethod
    def of(cls, source: Source, parts: Mapping[str, Tensor]) -> ImageRecord:
        """The record of a source whose parts have these rows (int64)."""
        letters = np.full(len(source), UNUSED)
        for name in ("pretrain", "finetune", "mask", "validation", "test"):  # finetune's rows are pretrain's, too
            if name in parts:
                letters[parts[name].numpy()] = LETTERS[name]
        rows = range(len(source))
        return cls(
            names=None if source.names is None else list(source.names),
            labels=source.labels.tolist(),
            stamps=[source.stamp(row) for row in rows],
            parts="".join(letters),
            groups=None if source.groups is None else source.groups.tolist(),
            contents=[source.digests.get(row, source.expected.get(row)) for row in rows],
        )

    def name(self, position: int) -> str:
        return str(position) if self.names is None else self.names[position]


@dataclass(frozen=True)
class DataRecord:
    """The images of a run, how they were divided, and what was computed from them.

    Attributes:
        class_names: the classes, by label.
        target_names: see ``ImageData``.
        mean, std: of the pixels, see ``ImageData``.
        pixel_range: of images of more than 8 bits, see ``PixelRange.to_store``; ``None`` in earlier versions.
        train, test: the images; ``test`` only if the set has its own test images.
    """

    class_names: Sequence[str]
    target_names: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    train: ImageRecord
    test: ImageRecord | None
    pixel_range: dict[str, Any] | None = None

    def text(self) -> str:
        """The contents of ``data.json``."""
        return json.dumps({"version": VERSION, **asdict(self)}) + "\n"

    @classmethod
    def read(cls, path: Path) -> DataRecord:
        """Read ``data.json``.

        Raises:
            SettingError: the file is missing, broken, or of another version.
        """
        try:
            values: dict[str, Any] = parse_json(read_whole(path))
            version, test = values.pop("version"), values.pop("test")
            train = ImageRecord(**values.pop("train"))
            record = cls(train=train, test=None if test is None else ImageRecord(**test), **values)
            record.check_types()
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not in its format"
            raise SettingError("data.division", str(path), f"the data.json of a run ({reason})") from None
        if version != VERSION:
            raise SettingError("data.division", str(path), f"a file of version {VERSION}, not {version}")
        return record

    def check_types(self) -> None:
        """Raise ValueError or TypeError if columns differ in length, or a statistic, label or size is not a number."""
        np.array([self.mean, self.std], np.float32)
        for images in [self.train] if self.test is None else [self.train, self.test]:
            np.array([images.labels, images.stamps], np.int64)
            columns = [images.names, images.labels, images.groups, images.contents]
            if any(column is not None and len(column) != len(images.parts) for column in columns):
                raise ValueError("its columns differ in length")

    def match(self, sources: SourceSplits, settings: DataSettings) -> tuple[SourceSplits, Rows]:
        """The same images as sources with the recorded labels' numbers, and the rows of the recorded parts.

        Images are found by name. Their contents are compared as they are read.

        Raises:
            DataError: the first class or image that differs, unless ``data.changed=accept``.
        """
        if not self.class_names:  # earlier versions took no label from some columns that have labels
            sources = replace(sources, class_names=(), test=None)
        matching = _Matching(self, sources, settings)
        matching.check_classes()
        train, train_rows = matching.matched(sources.train, self.train, "training")
        test: Source | None = None
        test_rows: dict[str, np.ndarray] = {}
        if self.test is not None and sources.test is not None:
            test, test_rows = matching.matched(sources.test, self.test, "test")
        elif self.test is not None or sources.test is not None:
            words = "has no test split" if sources.test is None else "has a test split"
            raise DataError(f"{matching.where} {words}, unlike the run's images; expected the images of the run")
        finetune, mask, unlabelled = (train_rows[name] for name in ("finetune", "mask", "pretrain"))
        rows = Rows(
            pretrain=np.union1d(finetune, unlabelled),
            finetune=finetune,
            mask=mask,
            train=np.union1d(finetune, mask),
            validation=train_rows["validation"],
            test=(test_rows or train_rows)["test"],
        )
        return replace(sources, train=train, test=test, class_names=tuple(self.class_names)), rows


@dataclass
class _Matching:
    record: DataRecord
    sources: SourceSplits
    settings: DataSettings

    @property
    def where(self) -> str:
        data = self.settings
        return f"data.path={data.path}" if data.path else f"data={data.name}"

    @property
    def accepting(self) -> bool:
        return self.settings.changed == "accept"

    def refuse(self, difference: str) -> None:
        if not self.accepting:
            raise DataError(
                f"{self.where}: {difference}; give the images of the run (data.path=DIR), or set "
                "data.changed=accept, which keeps the run's classes and division and leaves out new images"
            )

    def check_classes(self) -> None:
        now, before = self.sources.class_names, self.record.class_names
        gone = next((name for name in before if name not in now), None)
        new = next((name for name in now if name not in before), None)
        if gone is not None:
            self.refuse(f"the run's class {gone!r} is missing" + (f" and {new!r} is new" if new is not None else ""))
        elif new is not None:
            self.refuse(f"the class {new!r} is new since the run")

    def matched(self, source: Source, record: ImageRecord, split: str) -> tuple[Source, dict[str, np.ndarray]]:
        """The source with recorded labels and groups, and the rows of each part."""
        rows = {source.image_name(row): row for row in range(len(source))}
        labels = self._labels(source)
        positions = np.full(len(record.parts), -1)
        for position in range(len(record.parts)):
            row = rows.pop(record.name(position), None)
            if row is None:
                self.refuse(f"{self._named(source, record.name(position), split)} is missing")
                continue
            positions[position] = row
            if labels[row] != record.labels[position]:
                label = self._class(record.labels[position])
                self.refuse(f"{source.describe_row(row)} is of {self._class(int(labels[row]))}, in the run of {label}")
            if source.stamp(row) != record.stamps[position]:
                self.refuse(f"{source.describe_row(row)} {CHANGED.partition(';')[0]}")
        if rows:
            self.refuse(f"{source.describe_row(min(rows.values()))} is new since the run")
        there = positions >= 0
        source.labels = torch.from_numpy(labels)
        if record.groups is not None:
            groups = max(record.groups, default=0) + 1 + np.arange(len(source))
            groups[positions[there]] = np.array(record.groups)[there]
            source.groups = torch.from_numpy(groups)
        if not self.accepting:
            digests = zip(positions.tolist(), record.contents, strict=True)
            source.expected = {row: digest for row, digest in digests if digest is not None}
        letters = np.array(list(record.parts))
        usable = there.copy()
        usable[there] = (labels[positions[there]] != UNLABELLED) | (letters[there] == LETTERS["pretrain"])
        parts = {
            name: np.sort(positions[usable & (letters == letter)]).astype(np.int64) for name, letter in LETTERS.items()
        }
        return source, parts

    def _labels(self, source: Source) -> np.ndarray:
        """The labels int64 ``[N]`` as positions in the recorded class names."""
        numbers = {name: number for number, name in enumerate(self.record.class_names)}
        if not numbers:
            return np.full(len(source), UNLABELLED)
        by_label = np.array([*(numbers.get(name, UNLABELLED) for name in self.sources.class_names), UNLABELLED])
        return by_label[source.labels.numpy()]

    def _class(self, label: int) -> str:
        return "no class" if label == UNLABELLED else f"class {self.record.class_names[label]!r}"

    def _named(self, source: Source, name: str, split: str) -> str:
        return name if source.names is not None else f"row {name} of the {split} images"
