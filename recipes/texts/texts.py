"""Labelled texts as word numbers, generated or from your own file."""

from __future__ import annotations

import glob
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
from multilevel.recipes.data.sources.loading import load_tables
from multilevel.recipes.data.strata import cut_share, random_for
from multilevel.recipes.texts.planted import CLASSES, is_signal, planted_texts
from multilevel.solvers import DataError
from multilevel.solvers.ranges import Above, AtLeast, Below, Count, check, require

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(kw_only=True)
class TextSettings:
    """The texts of a run, and their splits.

    Args:
        name: the name of the data.
        path: a .csv, .json, .jsonl or .parquet file with a column of texts and a column of labels; None: generated
            texts, with a quarter of the words telling the class.
        text_column: the column of the texts.
        label_column: the column of their labels.
        length: words per text; longer texts are truncated.
        vocabulary: number of the most frequent words to know; others become one unknown word.
        batch_size: texts in a batch.
        mask_share: share of the training texts for the masking network.
        test_share: share of all texts kept for testing.
        split_seed: the seed of all random splits.
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
    """A part of the texts: word numbers int64 [N, L], padded at the end; classes int64 [N]."""

    words: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class TextData:
    """The texts of a run.

    Attributes:
        train: texts for the encoder and the classifier.
        mask: texts for the masking network.
        test: texts that nothing learns from.
        vocabulary: the word of each number, without special tokens; the most frequent words of ``train``.
        class_names: the class of each number.
        signal: bool [words, special tokens included], the words that tell the class; None if unknown.
    """

    train: TextPart
    mask: TextPart
    test: TextPart
    vocabulary: tuple[str, ...]
    class_names: tuple[str, ...]
    signal: Tensor | None

    @property
    def words(self) -> int:
        """The size of the vocabulary, special tokens included."""
        return SPECIAL + len(self.vocabulary)


def load_texts(settings: TextSettings) -> TextData:
    """Read texts, split them at random with every class in proportion, and number their words.

    Raises:
        SettingError: an unusable setting, or a missing column.
        DataError: an unreadable file, a text without words, or too few texts of a class.
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
    """The words' numbers, int64 [N, length], padded at the end."""
    numbers = {word: SPECIAL + number for number, word in enumerate(vocabulary)}
    words = torch.full((len(texts), length), PADDING)
    for row, text in enumerate(texts):
        row_numbers = [numbers.get(word, UNKNOWN) for word in text[:length]]
        words[row, : len(row_numbers)] = torch.tensor(row_numbers)
    return words


def read_texts(path: Path, settings: TextSettings) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Read texts, classes int64 [N] and class names from a file with a column of texts and a column of labels.

    Raises:
        SettingError: the file or a column does not exist.
        DataError: the file cannot be read, or a row has no label.
    """
    known = path.is_file() and path.suffix in FORMATS
    require("data.path", str(path), known, f"a file that ends in {', '.join(FORMATS)}")
    table = load_tables(
        FORMATS[path.suffix], f"data.path={path}: it cannot be read", data_files=glob.escape(str(path))
    )["train"]
    for setting in ("text_column", "label_column"):
        column = getattr(settings, setting)
        require(f"data.{setting}", column, column in table.column_names, f"one of {', '.join(table.column_names)}")
    names, labels = read_labels(table, settings.label_column, None, str(path))
    return [str(text or "") for text in table[settings.text_column]], labels.numpy(), names
