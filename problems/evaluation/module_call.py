"""Calls any function of a module at given parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class ModuleCall(nn.Module):
    """Turns any function that calls a module into a ``forward``, the only method that functional_call evaluates.

    Args:
        module: the module.
        compute: a method of the module, or a function that calls it; ``module.__call__`` also runs its hooks.
    """

    def __init__(self, module: nn.Module, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.compute = compute

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return self.compute(*inputs, **keywords)

    def at(self, values: Mapping[str, Tensor], inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """The result with ``values`` in place of the module's parameters and buffers of these names."""
        return functional_call(self, {f"module.{key}": value for key, value in values.items()}, inputs, dict(keywords))


class BufferedCall(ModuleCall):
    """A call that also returns the module's reassigned buffers."""

    def forward(self, *inputs: Any, **keywords: Any) -> tuple[Any, dict[str, Tensor]]:
        before = dict(self.module.named_buffers(remove_duplicate=False))
        result = self.compute(*inputs, **keywords)
        after = dict(self.module.named_buffers(remove_duplicate=False))
        return result, {name: buffer for name, buffer in after.items() if buffer is not before.get(name)}
