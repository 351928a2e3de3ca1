"""The state of every random generator that a loss may use, to capture, restore and replay."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class RandomState:
    """State of torch's (CPU and every CUDA device in use), numpy's and Python's global generators.

    Attributes:
        cpu: torch's CPU generator, uint8 vector.
        cuda: one uint8 vector a device; empty where CUDA is not in use.
        numpy: what ``numpy.random.get_state`` returns.
        python: what ``random.getstate`` returns.
    """

    cpu: Tensor
    cuda: tuple[Tensor, ...]
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]

    @classmethod
    def capture(cls) -> RandomState:
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        return cls(torch.get_rng_state(), cuda, tuple(np.random.get_state()), random.getstate())

    @classmethod
    def seeded(cls, seed: int) -> RandomState:
        """The state after seeding every generator with ``seed``, 0 <= seed < 2**32; the current one stays."""
        with preserved():
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            return cls.capture()

    def equals(self, other: RandomState) -> bool:
        """Whether every generator would go on alike."""
        return (
            torch.equal(self.cpu, other.cpu)
            and len(self.cuda) == len(other.cuda)
            and all(torch.equal(*pair) for pair in zip(self.cuda, other.cuda, strict=True))
            and all(np.array_equal(*pair) for pair in zip(self.numpy, other.numpy, strict=True))
            and self.python == other.python
        )

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(list(self.cuda))
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block the generators start from this state; after it they are as they were before."""
        with preserved():
            self.restore()
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": self.cpu, "cuda": self.cuda, "numpy": self.numpy, "python": self.python}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RandomState:
        return cls(**state)


@contextmanager
def preserved() -> Iterator[None]:
    """Leave every generator as it was found."""
    state = RandomState.capture()
    try:
        yield
    finally:
        state.restore()


class ReplayableDropout(TorchFunctionMode):
    """Has dropout draw the same mask from the same generator state, however a loss is being differentiated.

    A mask is drawn in the order of its input's memory, which differs between attention kernels and under torch.func.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        name = getattr(function, "__name__", "")
        if "dropout" in name and arguments and isinstance(arguments[0], Tensor):
            return function(arguments[0].contiguous(), *arguments[1:], **keywords)
        # where it is given by position, as torch.nn.MultiheadAttention does, dropout is the only float
        dropout = keywords.get("dropout_p") or any(isinstance(one, float) and one > 0 for one in arguments)
        if "attention" in name and dropout:
            with sdpa_kernel(SDPBackend.MATH):
                return function(*arguments, **keywords)
        return function(*arguments, **keywords)
