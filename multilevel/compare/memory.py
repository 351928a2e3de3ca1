"""Measures the memory that a computation takes in addition to what was in use before."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTracker:
    """Tracks the largest total size of the tensors made in its block and alive at the same time.

    On a GPU, this is the allocator's peak minus what was allocated before. On a CPU, every operator's results are
    followed until their storage is freed; a kernel's internal allocations are not seen.

    Args:
        device: device of the computation.

    Attributes:
        peak: peak memory in bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self._storages = _LiveStorages()

    def __enter__(self) -> MemoryTracker:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._storages.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self._storages.__exit__(*error)
            self.peak = self._storages.peak


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._addresses: set[int] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        inputs = {_address(tensor) for tensor in tree_leaves((arguments, keywords)) if _has_storage(tensor)}
        result = operator(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if _has_storage(tensor) and _address(tensor) not in inputs:
                self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage, address = tensor.untyped_storage(), _address(tensor)
        if address in self._addresses:
            return
        size = storage.nbytes()
        self._addresses.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._addresses.discard(address)
        self.live -= size


def _has_storage(value: Any) -> bool:
    """Whether a value is a tensor with its own memory; a wrapper of a function transform is not."""
    return isinstance(value, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
