"""Reads and writes the state of numpy's global generator directly in memory.

``numpy.random.get_state`` and ``set_state`` copy 624 words one by one and take a tenth of a millisecond, which a small
level would pay in every evaluation of its loss.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np

#: The result of ``numpy.random.get_state()``: name, key [624], position, whether a Gaussian is cached, that Gaussian.
NumpyState = tuple[Any, ...]

_KEY, _POSITION, _GAUSSIAN = 624 * 4, struct.Struct("i"), struct.Struct("i4xd")


def numpy_state() -> NumpyState:
    """Equivalent to ``numpy.random.get_state()``.

    >>> [type(part).__name__ for part in numpy_state()]
    ['str', 'ndarray', 'int', 'int', 'float']
    """
    memory = _memory()
    if memory is None:
        return tuple(np.random.get_state())
    words = memory[0].raw
    key, position = np.frombuffer(words, np.uint32, 624), _POSITION.unpack_from(words, _KEY)
    return ("MT19937", key, *position, *_GAUSSIAN.unpack(memory[1].raw))


def set_numpy_state(state: NumpyState) -> None:
    """Equivalent to ``numpy.random.set_state(state)``."""
    memory, key = _memory(), state[1].tobytes()
    if memory is None or len(state) != 5 or len(key) != _KEY:
        np.random.set_state(state)
        return
    memory[0].raw = key + _POSITION.pack(state[2])
    memory[1].raw = _GAUSSIAN.pack(state[3], state[4])


def _gaussian_offset() -> int | None:
    """The offset of the cached Gaussian in a ``RandomState`` object; None if this numpy has another layout."""
    generator = np.random.RandomState(0)
    generator.standard_normal()
    memory = ctypes.string_at(id(generator), np.random.RandomState.__basicsize__)
    _, _, _, cached, gaussian = generator.get_state(legacy=True)
    offset = memory.find(struct.pack("d", gaussian)) - 8
    return offset if offset >= 0 and _GAUSSIAN.unpack_from(memory, offset) == (cached, gaussian) else None


_OFFSET = _gaussian_offset()
_known: tuple[Any, tuple[Any, Any] | None] = (None, None)  # the generator's bit source, and their addresses


def _memory() -> tuple[Any, Any] | None:
    """The bytes of key and position, and of the cached Gaussian; None if only numpy can read them."""
    global _known
    generator = np.random.mtrand._rand
    source = generator._bit_generator
    if source is not _known[0]:
        memory = None
        if _OFFSET is not None and type(source) is np.random.MT19937:
            words = (ctypes.c_char * (_KEY + _POSITION.size)).from_address(source.ctypes.state_address)
            memory = words, (ctypes.c_char * _GAUSSIAN.size).from_address(id(generator) + _OFFSET)
        _known = source, memory
    return _known[1]
