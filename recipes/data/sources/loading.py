"""Loads tables with the ``datasets`` library, with every error in one line."""

from __future__ import annotations

import glob
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multilevel.recipes.data.class_names import class_labels, join_by_class_names
from multilevel.recipes.data.sources.listing import has_images, visible_folders
from multilevel.recipes.data.sources.split_folders import TEST, VALIDATION
from multilevel.solvers.errors import DataError

SUFFIX = ".parquet"
PREFIXES = ("test", "validation")  # of the names of test files


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The parquet files in ``folder`` whose names start with a split's name, sorted; case is ignored."""
    files = (file for file in folder.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())
    return sorted(file for file in files if file.name.lower().startswith(split.lower()))


def test_files(folder: Path, test_split: str | None) -> list[Path]:
    """The parquet files of the test images: of ``data.test_split``, otherwise of the first usual name that has any."""
    names = PREFIXES if test_split is None else (test_split, *PREFIXES)
    if files := next((files for name in names if (files := parquet_files(folder, name))), []):
        return files
    for name in (*TEST, *VALIDATION):
        word = re.compile(rf"{name}(?![a-z])", re.IGNORECASE)  # not values.parquet for val
        if files := [file for file in parquet_files(folder, name) if word.match(file.name)]:
            return files
    return []


def parquet_folder(path: Path, train_split: str) -> Path | None:
    """The folder with the training tables: ``path`` or, in a clone from the hub, its only subfolder with such files.

    Raises:
        DataError: several subfolders have such files.
    """
    if parquet_files(path, train_split):
        return path
    folders = [folder for folder in visible_folders(path) if parquet_files(folder, train_split)]
    if not folders or has_images(path):
        return None
    if len(folders) > 1:
        names = ", ".join(str(folder) for folder in folders)
        raise DataError(f"data.path={path} has several folders with {train_split}*.parquet: expected one of {names}")
    return folders[0]


def load_parquet(files: Sequence[Path], where: str) -> Any:
    """Load the rows of parquet files as one ``datasets.Dataset``.

    Files whose class labels are numbered differently are read by the names of their classes.

    Raises:
        DataError: unreadable files, or numbered classes without names next to named ones.
    """
    import datasets
    from pyarrow import parquet

    failure = f"data.path={where}: these parquet files cannot be read"
    groups: dict[str, list[Path]] = {}
    for file in files:
        try:
            features = datasets.Features.from_arrow_schema(parquet.read_schema(file))
        except Exception as error:  # from Arrow or the file system
            raise DataError(f"{failure} ({file.name}: {' '.join(str(error).split())})") from error
        groups.setdefault(repr(class_labels(features)), []).append(file)
    # each path is a pattern to `datasets`, which would read other files for brackets, stars and question marks
    patterns = ([glob.escape(str(file.absolute())) for file in group] for group in groups.values())
    tables = [load_tables(SUFFIX[1:], failure, data_files=group, split="train") for group in patterns]
    return tables[0] if len(tables) == 1 else join_by_class_names(tables, where)


def load_tables(builder: str, failure: str, **options: Any) -> Any:
    """Call ``datasets.load_dataset``, with every error in one line."""
    import datasets  # takes a second to import, and only these data sets need it

    try:
        with quiet_libraries():
            return datasets.load_dataset(builder, trust_remote_code=False, **options)
    except Exception as error:  # from the network, the hub, the file system or Arrow
        cause = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{failure} ({type(error).__name__}: {cause})") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence progress bars outside a terminal, and warnings that the one-line error repeats."""
    import datasets

    silence = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    if silence:
        datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        if silence:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
