"""Labelled texts as numbers of words: generated ones, or your own file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from multilevel.levels.models.masked_language_model import PADDING, SPECIAL, UNKNOWN
from multilevel.recipes.data.columns import read_labels
from multilevel.recipes.data.sources.tables import load_tables
from multilevel.recipes.data.strata import cut_share, random_for
from multilevel.recipes.texts.planted import CLASSES, is_signal, planted_texts
from multilevel.solvers import DataError
from multilevel.solvers.ranges import Above, AtLeast, Below, Count, check, require

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(kw_only=True)
class TextSettings:
    """Which texts a run uses, and how they are divided.

    Args:
        name: what the texts are called.
        path: a file with a column of texts and one of labels: .csv, .json, .jsonl or .parquet; None: generated texts, a
            quarter of whose words tell the class.
        text_column: the column of the texts.
        label_column: the column of their labels.
        length: words; longer texts are cut off.
        vocabulary: the most frequent words; others are one unknown word.
        batch_size: texts in a batch.
        mask_share: share of the training texts that the masking network learns from.
        test_share: share of all texts kept for testing.
        split_seed: the seed of every random division of the texts.
    """

    name: str
    path: str | None
    text_column: str
    label_column: str
    length: Annotated[int, AtLeast(2)]
    vocabulary: Count
    batch_size: Count
    mask_share: Annotated[float, Above(0), Below(1)]
    test_share: Annotated[float, Above(0), Below(1)]
    split_seed: int


@dataclass(frozen=True)
class TextPart:
    """Some texts: words int64 [N, L], numbers in the vocabulary, ended by padding; classes int64 [N]."""

    words: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class TextData:
    """The texts of a run.

    Attributes:
        train: those that train the encoder and the classifier.
        mask: those that the masking network learns from.
        test: those that nothing learns from.
        vocabulary: the word of each number, special tokens left out; the most frequent words of ``train``.
        class_names: the class of each number.
        signal: bool [words, special tokens included], which words tell the class; None where nobody knows.
    """

    train: TextPart
    mask: TextPart
    test: TextPart
    vocabulary: tuple[str, ...]
    class_names: tuple[str, ...]
    signal: Tensor | None

    @property
    def words(self) -> int:
        """Numbers of words that there may be, special tokens included."""
        return SPECIAL + len(self.vocabulary)


def load_texts(settings: TextSettings) -> TextData:
    """Read texts, divide them at random, every class in proportion, and number their words.

    Raises:
        SettingError: a setting that cannot work, or a column that is not there.
        DataError: a file that cannot be read, a text without words, or too few texts of a class.
    """
    check(settings, "data.")
    texts, labels, names = read_texts(Path(settings.path), settings) if settings.path else (*planted_texts(), CLASSES)
    split = [re.findall(r"\w+", text.lower()) for text in texts]  # runs of letters and digits
    empty = next((row for row, text in enumerate(split) if not text), None)
    if empty is not None:
        raise DataError(f"row {empty} of {settings.path} has no word in column {settings.text_column!r}: remove it")
    if np.bincount(labels, minlength=len(names)).min() < 3:
        raise DataError(f"{settings.path}: expected at least 3 texts of every class, one to train, hold out and test")
    seed, everything = settings.split_seed, np.arange(len(labels))
    training, test = cut_share(labels, everything, settings.test_share, 2, random_for(seed, "test"))
    train, mask = cut_share(labels, training, settings.mask_share, 1, random_for(seed, "mask"))
    counts = Counter(word for row in train for word in split[row])
    vocabulary = tuple(word for word, _ in counts.most_common(settings.vocabulary))
    words = numbered(split, vocabulary, settings.length)
    parts = {
        name: TextPart(words[rows], torch.from_numpy(labels)[rows])
        for name, rows in (("train", train), ("mask", mask), ("test", test))
    }
    signal = None if settings.path else torch.tensor([False] * SPECIAL + [is_signal(word) for word in vocabulary])
    return TextData(**parts, vocabulary=vocabulary, class_names=names, signal=signal)


def numbered(texts: Sequence[Sequence[str]], vocabulary: Sequence[str], length: int) -> Tensor:
    """The words' numbers, int64 [N, length], padding after the last one."""
    numbers = {word: SPECIAL + number for number, word in enumerate(vocabulary)}
    words = torch.full((len(texts), length), PADDING)
    for row, text in enumerate(texts):
        row_numbers = [numbers.get(word, UNKNOWN) for word in text[:length]]
        words[row, : len(row_numbers)] = torch.tensor(row_numbers)
    return words


def read_texts(path: Path, settings: TextSettings) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Texts, classes int64 [N] and the classes' names of a file with a column of texts and one of labels.

    Raises:
        SettingError: no such file, or a column that it does not have.
        DataError: it cannot be read, or a row has no label.
    """
    known = path.is_file() and path.suffix in FORMATS
    require("data.path", str(path), known, f"a file that ends in {', '.join(FORMATS)}")
    table = load_tables(FORMATS[path.suffix], f"data.path={path}: it cannot be read", data_files=str(path))["train"]
    for setting in ("text_column", "label_column"):
        column = getattr(settings, setting)
        require(f"data.{setting}", column, column in table.column_names, f"one of {', '.join(table.column_names)}")
    names, labels = read_labels(table, settings.label_column, None, str(path))
    return [str(text or "") for text in table[settings.text_column]], labels.numpy(), names
