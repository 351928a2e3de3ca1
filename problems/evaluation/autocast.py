"""Captures the state of autocast for repeated computations, and adapts attention to autocast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


@dataclass(frozen=True)
class AutocastState:
    """Whether each kind of device computes under autocast, and in which dtype.

    Attributes:
        kinds: for each device type (cpu, cuda), whether autocast is on, and its dtype.
        caches: whether autocast caches casts of parameters.
    """

    kinds: Mapping[str, tuple[bool, torch.dtype]]
    caches: bool

    @classmethod
    def capture(cls, tensors: Iterable[Tensor]) -> AutocastState:
        """Capture the state for the devices of ``tensors``."""
        kinds = filter(torch.amp.is_autocast_available, sorted({tensor.device.type for tensor in tensors}))
        states = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds}
        return cls(states, torch.is_autocast_cache_enabled())

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block, restore the captured state."""
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self.kinds.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.caches))
            yield


class AutocastAttention(TorchFunctionMode):
    """Makes attention under autocast and torch.func compute the same as under only autocast.

    Within a torch.func transform, autocast also casts between the steps of the plain attention kernel, whose backward
    pass then meets mismatched dtypes (torch 2.6 to 2.13).
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        name = getattr(function, "__name__", "")
        if name not in ATTENTION or not torch._C._are_functorch_transforms_active():
            return function(*arguments, **keywords)
        tensors = [argument for argument in (*arguments, *keywords.values()) if isinstance(argument, Tensor)]
        kind = tensors[0].device.type
        if not torch.is_autocast_enabled(kind):
            return function(*arguments, **keywords)
        dtype = torch.get_autocast_dtype(kind)

        def cast(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if floating and value.dtype != torch.float64 else value

        with torch.autocast(kind, enabled=False):
            return function(*map(cast, arguments), **{key: cast(value) for key, value in keywords.items()})
