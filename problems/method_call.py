"""Any method of a module at given parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class MethodCall(nn.Module):
    """functional_call evaluates ``forward`` alone; this makes a method of a module a ``forward``.

    Args:
        module: the module.
        method: its method's name; ``__call__`` runs its hooks as well.
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return getattr(self.module, self.method)(*arguments, **keywords)

    def at(self, values: Mapping[str, Tensor], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """The method's result with ``values`` in place of the parameters and buffers of these names."""
        return functional_call(self, {f"module.{name}": one for name, one in values.items()}, arguments, dict(keywords))
