"""A level's batches, which restart when they end, allow looking ahead, and resume at a stored position."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map
from torch.utils.data import DistributedSampler

from multilevel.problems import replicas
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.solvers import DataError


@dataclass(frozen=True)
class ReadBatch:
    """A batch that was read from the data, and the stream's position after it."""

    batch: Any
    epoch: int
    position: int


class Batches:
    """The batches of one level, in an order that depends only on (seed, level, epoch).

    Draws of the data from global generators (a DataLoader's shuffling, an augmentation) come from a separate stream, so
    data and losses do not affect each other's randomness, and a position is enough to resume. Data with a method
    ``iterate_from(position)`` resumes through it; other data is iterated up to the position.

    With several ranks, each takes its share of every batch without overlap: through the data's method
    ``batch_share(rank, count)`` if there is one, else by slicing each tensor along its first dimension, which must be
    the samples'.

    Args:
        level: the level's name.
        data: any iterable of batches; with None every batch is None.
        device: device for the tensors in a batch.
        seed: seed of the stream.

    Attributes:
        waited: seconds spent waiting for batches so far.
    """

    _iterator: Iterator[Any] | None
    _peeked: list[ReadBatch]

    def __init__(self, level: str, data: Iterable[Any] | None, device: torch.device, seed: int = 0) -> None:
        self.level = level
        several = replicas.count() > 1
        if several and _is_sharded(data):
            raise DataError(
                f"the data of level {level!r} has a DistributedSampler, and would be split twice: leave it out"
            )
        share = getattr(data, "batch_share", None) if several else None
        self.data: Any = data if share is None else share(replicas.rank(), replicas.count())
        self._cut = several and share is None
        self.device = device
        self.waited = 0.0
        self.restart(seed)

    def restart(self, seed: int, epoch: int = 0, position: int = 0) -> None:
        """Go to a position in an epoch of the stream of ``seed``; data that is an iterator stays where it is."""
        self.seed, self.epoch, self.position = seed, epoch, position
        if isinstance(self.data, Iterator) and hasattr(self, "_iterator"):
            self._peeked = [ReadBatch(read.batch, epoch, position + 1 + i) for i, read in enumerate(self._peeked)]
            self._read = (epoch, position + len(self._peeked))
            return
        self._iterator = None
        self._stream: RandomState | None = None  # for the data's draws in this epoch
        self._read = (epoch, position)  # of the iterator, which may be ahead
        self._peeked = []
        self._taken: list[ReadBatch] | None = None  # since the start of ``rewound``

    def peek(self) -> Any:
        """Return the next batch without consuming it."""
        if not self._peeked:
            start = perf_counter()
            self._peeked = [self._fetch()]
            self.waited += perf_counter() - start
        return self._peeked[0].batch

    def ahead(self, count: int) -> list[Any]:
        """Return the next ``count`` batches, or fewer at the end of the epoch, without consuming them."""
        self.peek()
        while len(self._peeked) < count and self._iterator is not None and (batch := self._advance()) is not _END:
            self._peeked.append(self._placed(batch))
        return [read.batch for read in self._peeked[:count]]

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            DataError: the data is empty, or an exhausted iterator that cannot restart.
        """
        self.peek()
        read = self._peeked.pop(0)
        if self._taken is not None:
            self._taken.append(read)
        self.epoch, self.position = read.epoch, read.position
        return read.batch

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """A block after which the batches taken in it come again; they stay in memory until then."""
        epoch, position, outermost = self.epoch, self.position, self._taken is None
        taken = self._taken = [] if self._taken is None else self._taken
        count = len(taken)
        try:
            yield
        finally:
            self._peeked[:0] = taken[count:]
            del taken[count:]
            self.epoch, self.position = epoch, position
            if outermost:
                self._taken = None

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.restart(**state)

    def _fetch(self) -> ReadBatch:
        if self.data is None:
            return ReadBatch(None, self.epoch, self.position + 1)
        if self._iterator is None:
            self._start_epoch()
        batch = self._advance()
        if batch is _END:
            self._read = self._read[0] + 1, 0
            self._start_epoch()
            batch = self._advance()
        if batch is _END:
            raise DataError(f"the data of level {self.level!r} is empty, or an iterator that cannot restart")
        return self._placed(batch)

    def _placed(self, batch: Any) -> ReadBatch:
        epoch, position = self._read
        self._read = epoch, position + 1
        return ReadBatch(to_device(own_share(batch, self.level) if self._cut else batch, self.device), *self._read)

    def _start_epoch(self) -> None:
        assert self.data is not None
        epoch, position = self._read
        if type(self.data) in (list, tuple):  # iterating over these types draws no random numbers
            self._stream = None
            self._iterator = islice(iter(self.data), position, None)
            return
        self._stream = RandomState.seeded(zlib.crc32(f"{self.seed}/{self.level}/{epoch}".encode()))
        with self._stream.active():
            if hasattr(self.data, "iterate_from"):
                self._iterator = self.data.iterate_from(position)
            else:
                self._iterator = islice(iter(self.data), position, None)
            self._stream = RandomState.capture()

    def _advance(self) -> Any:
        assert self._iterator is not None
        if self._stream is None:
            return next(self._iterator, _END)
        with self._stream.active():
            batch = next(self._iterator, _END)
            self._stream = RandomState.capture()
        return batch


_END = object()


def _is_sharded(data: Any) -> bool:
    """Whether a DataLoader already gives each rank its own samples."""
    samplers = (getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def own_share(batch: Any, level: str) -> Any:
    """This rank's rows of every tensor of a batch.

    Raises:
        DataError: the ranks cannot share the rows evenly, or the batch contains something other than tensors of equal
            length.
    """
    length, ranks = _rows(batch, level, "give the data a method batch_share(rank, count)"), replicas.count()
    count, remainder = divmod(length, ranks)
    if remainder:
        raise DataError(f"a batch of level {level!r} has {length} rows, which {ranks} ranks cannot share evenly")
    return _cut(batch, replicas.rank() * count, count)


def first_rows(batch: Any, share: float, level: str) -> Any:
    """The first rows, at least one, of every tensor of a batch.

    Raises:
        DataError: the batch contains something other than tensors of equal length.
    """
    remedy = f"set levels.{level}.solve_share to 1"
    length = _rows(batch, level, remedy)
    if length == 0:
        raise DataError(f"a batch of level {level!r} has no rows to take a share of: {remedy}")
    return _cut(batch, 0, max(1, round(share * length)))


def halves(batch: Any, level: str) -> list[tuple[Any, int]]:
    """The two halves of a batch, cut from every tensor, each with its number of rows; of an odd number, the second half
    has the larger part.

    Raises:
        DataError: the batch has fewer than two rows, or contains something other than tensors of equal length.

    >>> halves([torch.tensor([1, 2, 3])], "target")
    [([tensor([1])], 1), ([tensor([2, 3])], 2)]
    """
    length = _rows(batch, level, "its halves cannot be compared")
    if length < 2:
        raise DataError(
            f"a batch of level {level!r} has {length} row{'s' * (length != 1)}, and has no halves to compare: give the "
            "level batches of at least 2 rows"
        )
    middle = length // 2
    return [(_cut(batch, 0, middle), middle), (_cut(batch, middle, length - middle), length - middle)]


def _rows(batch: Any, level: str, remedy: str) -> int:
    """The number of rows of every tensor in a batch; None and tensors without dimensions apply to all samples."""
    leaves: list[Any] = []
    _map_leaves(leaves.append, batch)
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, Tensor):
            raise DataError(f"a batch of level {level!r} holds a {type(leaf).__name__}, which has no rows: {remedy}")
    lengths = sorted({len(leaf) for leaf in leaves if leaf is not None and leaf.ndim > 0})
    if len(lengths) > 1:
        raise DataError(
            f"a batch of level {level!r} has tensors of {lengths} rows: it is unclear which are its samples; {remedy}"
        )
    return lengths[0] if lengths else 0


def _cut(batch: Any, start: int, count: int) -> Any:
    """Slice the rows of every tensor that has rows."""
    return map_tensors(lambda tensor: tensor[start:][:count] if tensor.ndim > 0 else tensor, batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a batch; everything else stays unchanged."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)


def fresh(batch: Any, tensors: bool = False, listed: list[Tensor] | None = None) -> Any:
    """Copy a batch so that a loss may modify it: copies containers and arrays, and with ``tensors`` also tensors.

    Every tensor of the result is appended to ``listed`` once.

    >>> batch = {"x": torch.ones(2)}
    >>> _ = fresh(batch).pop("x")
    >>> list(batch)
    ['x']
    """

    def taken(leaf: Tensor | np.ndarray) -> Any:
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        result = leaf.clone() if tensors else leaf
        if listed is not None:
            listed.append(result)
        return result

    return map_tensors(taken, batch, arrays=True)


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each tensor has been written to; 0 for inference tensors, which do not count writes."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def map_tensors(function: Callable[[Any], Any], batch: Any, arrays: bool = False) -> Any:
    """Copy a batch, replacing every tensor with ``function`` of it; container types are kept.

    Tensors are found in nested tuples, lists, mappings and dataclasses, and in the direct attributes of other objects.
    A tensor that occurs twice is still one tensor afterwards. With ``arrays``, numpy arrays are mapped too.

    >>> map_tensors(torch.neg, {"x": [torch.tensor(1), "a name"]})
    {'x': [tensor(-1), 'a name']}
    """
    if isinstance(batch, Tensor):
        return function(batch)
    results: dict[int, Any] = {}

    def once(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            data, sizes, *order = leaf  # the sizes must stay on the CPU
            return tuple.__new__(PackedSequence, (once(data), sizes, *map(once, order)))
        if not isinstance(leaf, Tensor) and not (arrays and isinstance(leaf, np.ndarray)):
            return leaf
        if id(leaf) not in results:
            results[id(leaf)] = function(leaf)
        return results[id(leaf)]

    return _map_leaves(once, batch)


def _map_leaves(function: Callable[[Any], Any], batch: Any) -> Any:
    """``map_tensors`` for a ``function`` of everything that is not a container; among an object's attributes, only of
    tensors."""

    def copied(value: Any) -> Any:  # pytree treats unknown types as leaves
        if not _is_container(value):
            return function(value)
        result = _with_items(function, value)
        declared = [field.name for field in fields(value)] if is_dataclass(value) else []
        for name in declared:
            object.__setattr__(result, name, _map_leaves(function, getattr(value, name)))  # it may be frozen
        attributes = getattr(value, "__dict__", {})
        if attributes is value:  # a dict with its items as attributes
            object.__setattr__(result, "__dict__", result)
            return result
        for name, item in attributes.items():
            if name not in declared and (isinstance(item, Tensor) or _holds_items(item)):
                vars(result)[name] = _map_leaves(
                    lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, item
                )
        return result

    if type(batch) in (list, tuple):
        return type(batch)([_map_leaves(function, item) for item in batch])
    if type(batch) is dict:
        return {key: _map_leaves(function, item) for key, item in batch.items()}
    if batch is None or isinstance(batch, Tensor):
        return function(batch)
    return tree_map(copied, batch, is_leaf=lambda value: isinstance(value, PackedSequence))


def _with_items(function: Callable[[Any], Any], value: Any) -> Any:
    """Copy a container, applying ``function`` to the leaves of its items."""
    if isinstance(value, tuple):
        return tuple.__new__(type(value), [_map_leaves(function, item) for item in value])
    if isinstance(value, Mapping):
        items = {key: _map_leaves(function, item) for key, item in value.items()}
        if not isinstance(value, MutableMapping):
            return cast(Any, type(value))(items)
        result = copy.copy(value)
        result.update(items)
        return result
    result = copy.copy(value)
    if isinstance(value, list):
        result[:] = [_map_leaves(function, item) for item in value]
    return result


def _is_container(value: Any) -> bool:
    if isinstance(value, type | Tensor | PackedSequence | nn.Module):
        return False
    return _holds_items(value) or any(isinstance(item, Tensor) for item in getattr(value, "__dict__", {}).values())


def _holds_items(value: Any) -> bool:
    return isinstance(value, tuple | list | Mapping | SimpleNamespace) or is_dataclass(value)
