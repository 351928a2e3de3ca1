"""Compares the images of ranks that are about to train together."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import zip_longest
from typing import Any

import numpy as np

from multilevel.problems import replicas
from multilevel.recipes.data import ImageData
from multilevel.solvers import DataError

READ = 1000  # images whose contents are compared, at equal distances


def check_same_data(data: ImageData) -> None:
    """Refuse ranks whose images, labels or division differ; of 1,000 images the contents are compared, too.

    Raises:
        DataError: on every rank, the first difference.
    """
    if replicas.count() == 1:
        return
    source = data.train.images.source.whole
    rows = np.unique(np.linspace(0, len(source) - 1, min(READ, len(source))).astype(int)).tolist()
    for row in rows:
        source.check_contents(row)  # keeps the digest; an image that was decoded has one
    record = data.record()
    lists: dict[str, Sequence[Any]] = {
        "the classes are": record.class_names,
        "the training images are": record.train.names or [len(record.train.labels)],
        "the labels are": record.train.labels,
        "the files have sizes": record.train.stamps,
        "the parts are": record.train.parts,
        "the test images are": [] if record.test is None else record.test.names or [len(record.test.labels)],
        "the contents are": [(record.train.name(row), record.train.contents[row]) for row in rows],
    }
    for what, values in lists.items():
        digest = blake2b(repr(list(values)).encode()).digest()
        if len(set(replicas.gather(digest))) > 1:
            _raise_difference(what, values, record.train.name)


def _raise_difference(what: str, values: Sequence[Any], name: Any) -> None:
    first, *others = replicas.gather(list(values))
    rank, other = next((rank, other) for rank, other in enumerate(others, start=1) if other != first)
    pairs = enumerate(zip_longest(first, other, fillvalue="missing"))
    position, (here, there) = next((position, pair) for position, pair in pairs if pair[0] != pair[1])
    where = f" for {name(position)}" if what in ("the labels are", "the files have sizes", "the parts are") else ""
    raise DataError(f"the ranks differ in their data: {what} {here} on rank 0 and {there} on rank {rank}{where}")
