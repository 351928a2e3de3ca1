"""Captures, restores and replays the state of every random generator that a loss may use."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from multilevel.problems.evaluation.numpy_state import numpy_state, set_numpy_state


@dataclass(frozen=True)
class RandomState:
    """The state of torch's (CPU and every CUDA device in use), numpy's and Python's global generators.

    Attributes:
        cpu: torch's CPU generator, uint8 vector.
        cuda: one uint8 vector per device; empty if CUDA is not in use.
        numpy: the result of ``numpy.random.get_state``.
        python: the result of ``random.getstate``.
    """

    cpu: Tensor
    cuda: tuple[Tensor, ...]
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]

    @classmethod
    def capture(cls) -> RandomState:
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        return cls(torch.default_generator.get_state(), cuda, numpy_state(), random.getstate())

    @classmethod
    def seeded(cls, seed: int) -> RandomState:
        """The state after seeding every generator with ``seed``, 0 <= seed < 2**32; the current state does not
        change."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        cuda = tuple(torch.Generator(f"cuda:{index}").manual_seed(seed).get_state() for index in devices)
        numpy = tuple(np.random.RandomState(seed).get_state())
        return cls(torch.Generator().manual_seed(seed).get_state(), cuda, numpy, random.Random(seed).getstate())

    def equals(self, state: RandomState) -> bool:
        """Whether every generator would continue identically."""
        return (
            torch.equal(self.cpu, state.cpu)
            and len(self.cuda) == len(state.cuda)
            and all(torch.equal(*pair) for pair in zip(self.cuda, state.cuda, strict=True))
            and all(np.array_equal(*pair) for pair in zip(self.numpy, state.numpy, strict=True))
            and self.python == state.python
        )

    def restore(self) -> None:
        torch.default_generator.set_state(self.cpu)
        if self.cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(list(self.cuda))
        set_numpy_state(self.numpy)
        random.setstate(self.python)

    def check(self) -> None:
        """Raise the generators' errors if this is the state of none; their current state does not change."""
        before = self.capture()
        try:
            self.restore()
        finally:
            before.restore()

    def active(self) -> Stream:
        """Within the block, the generators start from this state; after it, they are restored."""
        return Stream(self)

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": self.cpu, "cuda": self.cuda, "numpy": self.numpy, "python": self.python}


class Stream:
    """A block in which the generators start from a stored state, and after which they are restored."""

    def __init__(self, state: RandomState) -> None:
        self._state = state
        self._around: list[RandomState] = []

    def __enter__(self) -> None:
        self._around.append(RandomState.capture())
        self._state.restore()

    def __exit__(self, *error: object) -> None:
        self._around.pop().restore()


class ReplayableDropout(TorchFunctionMode):
    """Makes dropout draw the same mask from the same generator state, however a loss is being differentiated.

    torch draws masks in the memory order of the input, which differs between attention kernels and under torch.func.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        name = getattr(function, "__name__", "")
        if "dropout" in name and arguments and isinstance(arguments[0], Tensor):
            return function(arguments[0].contiguous(), *arguments[1:], **keywords)
        # if given by position, as in torch.nn.MultiheadAttention, dropout is the only float
        dropout = keywords.get("dropout_p") or any(isinstance(value, float) and value > 0 for value in arguments)
        if "attention" in name and dropout:
            with sdpa_kernel(SDPBackend.MATH):
                return function(*arguments, **keywords)
        return function(*arguments, **keywords)
