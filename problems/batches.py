"""A level's batches: restarted when they end, peeked at, and found again after a resume."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DistributedSampler

from multilevel.problems import replicas
from multilevel.problems.randomness import RandomState
from multilevel.solvers import DataError


class Batches:
    """The batches of one level, in an order that depends on (seed, level, epoch) and on nothing else.

    Whatever the data draws from global generators (a DataLoader's shuffling, an augmentation) comes from a
    stream of its own, so that the data neither moves nor follows the randomness of the losses, and a position
    is enough to go on from. Data with an ``iterate_from(position)`` method is asked for the rest of an epoch;
    other data is iterated up to it.

    With several ranks each takes its share of every batch, without overlap: data with a method
    ``batch_share(rank, count)`` is asked for it; of other data each tensor is cut along its first dimension, which
    must be that of the samples.

    Args:
        level: the level's name.
        data: any iterable of batches; None gives None as every batch.
        device: where tensors in a batch are moved.
        seed: of the stream.

    Attributes:
        waited: seconds that were spent on waiting for batches so far.
    """

    def __init__(self, level: str, data: Iterable[Any] | None, device: torch.device, seed: int = 0) -> None:
        self.level = level
        several = replicas.count() > 1
        if several and _is_sharded(data):
            raise DataError(
                f"the data of level {level!r} has a DistributedSampler, and would be shared out twice: leave it out"
            )
        share = getattr(data, "batch_share", None) if several else None
        self.data: Any = data if share is None else share(replicas.rank(), replicas.count())
        self._cut = several and share is None
        self.device = device
        self.waited = 0.0
        self.restart(seed)

    def restart(self, seed: int, epoch: int = 0, position: int = 0) -> None:
        """Go to a position of an epoch of the stream of ``seed``; an iterator as data stays where it is."""
        self.seed, self.epoch, self.position = seed, epoch, position
        if isinstance(self.data, Iterator) and hasattr(self, "_iterator"):
            return
        self._iterator: Iterator[Any] | None = None
        self._peeked: list[Any] = []

    def peek(self) -> Any:
        """The next batch, which stays the next."""
        if not self._peeked:
            start = perf_counter()
            self._peeked = [self._fetch()]
            self.waited += perf_counter() - start
        return self._peeked[0]

    def next(self) -> Any:
        """The next batch.

        Raises:
            DataError: the data is empty, or an iterator that has ended and cannot start again.
        """
        batch = self.peek()
        self._peeked = []
        self.position += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.restart(**state)

    def _fetch(self) -> Any:
        if self.data is None:
            return None
        if self._iterator is None:
            self._start_epoch()
        batch = self._advance()
        if batch is _END:
            self.epoch, self.position = self.epoch + 1, 0
            self._start_epoch()
            batch = self._advance()
        if batch is _END:
            raise DataError(f"the data of level {self.level!r} is empty, or an iterator that cannot start again")
        return to_device(own_share(batch, self.level) if self._cut else batch, self.device)

    def _start_epoch(self) -> None:
        assert self.data is not None
        self._stream = RandomState.seeded(zlib.crc32(f"{self.seed}/{self.level}/{self.epoch}".encode()))
        with self._stream.active():
            if hasattr(self.data, "iterate_from"):
                self._iterator = self.data.iterate_from(self.position)
            else:
                self._iterator = islice(iter(self.data), self.position, None)
            self._stream = RandomState.capture()

    def _advance(self) -> Any:
        assert self._iterator is not None
        with self._stream.active():
            batch = next(self._iterator, _END)
            self._stream = RandomState.capture()
        return batch


_END = object()


def _is_sharded(data: Any) -> bool:
    """Whether a DataLoader gives each rank its own samples already."""
    samplers = (getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def own_share(batch: Any, level: str) -> Any:
    """This rank's rows of every tensor in nested tuples, lists and dicts.

    Raises:
        DataError: rows that the ranks cannot share evenly, or something other than tensors of one length.
    """
    length, ranks = _rows(batch, level, "give the data a method batch_share(rank, count)"), replicas.count()
    count, rest = divmod(length, ranks)
    if rest:
        raise DataError(f"a batch of level {level!r} has {length} rows, which {ranks} ranks cannot share evenly")
    return _cut(batch, replicas.rank() * count, count)


def first_rows(batch: Any, share: float, level: str) -> Any:
    """The first rows, at least one, of every tensor in nested tuples, lists and dicts.

    Raises:
        DataError: something other than tensors of one length.
    """
    remedy = f"set levels.{level}.solve_share to 1"
    length = _rows(batch, level, remedy)
    if length == 0:
        raise DataError(f"a batch of level {level!r} has no rows to take a part of: {remedy}")
    return _cut(batch, 0, max(1, round(share * length)))


def _rows(batch: Any, level: str, remedy: str) -> int:
    """How many rows all tensors of a batch have; None and tensors without a dimension are for all samples."""
    values = [one for one in tree_leaves(batch) if one is not None and not (isinstance(one, Tensor) and one.ndim == 0)]
    for one in values:
        if not isinstance(one, Tensor):
            raise DataError(f"a batch of level {level!r} holds a {type(one).__name__}, which has no rows: {remedy}")
    lengths = sorted({len(one) for one in values})
    if len(lengths) > 1:
        raise DataError(
            f"a batch of level {level!r} has tensors of {lengths} rows: which are the samples is not clear; {remedy}"
        )
    return lengths[0] if lengths else 0


def _cut(batch: Any, start: int, count: int) -> Any:
    """Rows of every tensor that has rows."""
    return tree_map(lambda one: one[start:][:count] if isinstance(one, Tensor) and one.ndim > 0 else one, batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor in nested tuples, lists and dicts; anything else stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
