"""In-memory data as tensors, and batches of it, for small recipes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from multilevel.recipes.data.splits import ImageData, Split
from multilevel.solvers.errors import DataError


def tensors(data: ImageData, part: Split) -> tuple[Tensor, Tensor]:
    """All normalized images of a part, float32 [N, C, H, W], and their labels, int64 [N].

    Raises:
        DataError: a broken image, by its name.
    """
    return data.normalize(part.pixels(torch.arange(len(part)))), part.labels


def some_of_each_class(labels: Tensor, order: Tensor, count: int) -> Tensor:
    """The first ``count`` positions of each class in an order: int64 [classes * count], class by class.

    Args:
        labels: int64 [N], with each class at least ``count`` times.
        order: a permutation, int64 [N].
        count: number of positions per class.
    """
    return torch.cat([order[labels[order] == label][:count] for label in labels.unique()])


def batches(*tensors: Tensor, size: int) -> DataLoader:
    """Batches of the same rows of all tensors, in a new order every epoch; rows that do not fill a batch are left out.

    Args:
        tensors: each [N, ...].
        size: rows in a batch; all rows if there are fewer.

    Raises:
        DataError: no rows.
    """
    data = TensorDataset(*tensors)
    if len(data) == 0:
        raise DataError("no samples to train on; expected more data, or other values of the settings that split it")
    rows = BatchSampler(RandomSampler(data), min(size, len(data)), drop_last=True)
    return DataLoader(data, sampler=rows, batch_size=None)
