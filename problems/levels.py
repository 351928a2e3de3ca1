"""The levels as a loss sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from multilevel.problems.parameter_module import ParameterModule


class Levels:
    """``levels.NAME`` and ``levels["NAME"]`` are that level's module, evaluated at the engine's values.

    While a loss is evaluated, the modules hold the tensors that the engine substitutes for their parameters and
    buffers, so a loss may read a level like any module.

    Args:
        modules: the module of every level, by name.

    >>> levels = Levels({"fit": nn.Linear(2, 1)})
    >>> levels.fit is levels["fit"], "fit" in levels
    (True, True)
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        whole = {name: module for name, module in modules.items() if not isinstance(module, ParameterModule)}
        vars(self).update(whole)  # plain attributes, since losses read them often

    def __getattr__(self, name: str) -> Any:
        if name == "_modules":  # does not exist yet during a copy
            raise AttributeError(name)
        return self._of(name, AttributeError)

    def __getitem__(self, name: str) -> Any:
        module = self._modules.get(name)
        return self._of(name, KeyError) if module is None or isinstance(module, ParameterModule) else module

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __dir__(self) -> list[str]:
        return list(self._modules)

    def _of(self, name: str, error: type[Exception]) -> Any:
        if name not in self._modules:
            raise error(f"unknown level {name!r}; the levels are {', '.join(self._modules)}")
        module = self._modules[name]
        return module.value if isinstance(module, ParameterModule) else module
