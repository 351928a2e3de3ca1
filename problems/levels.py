"""What a loss sees of the levels: modules whose parameters the engine substitutes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from multilevel.problems.compilation import Compilation
from multilevel.problems.module_call import ModuleCall
from multilevel.problems.parameter_module import ParameterModule
from multilevel.problems.shared_calls import SharedCalls


class Levels:
    """``levels.NAME`` is a handle on that level's module, or the tensor of a level that is one parameter.

    Args:
        handles: makes the handle of a level by its name; called once a level, when first asked for.
        names: every level's name.
    """

    def __init__(self, handles: Callable[[str], LevelHandle], names: tuple[str, ...]) -> None:
        self._handles = handles
        self._names = names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"there is no level {name!r}; the levels are {', '.join(self._names)}")
        handle = self._handles(name)
        self.__dict__[name] = handle.value if isinstance(handle._module, ParameterModule) else handle
        return self.__dict__[name]

    def __dir__(self) -> list[str]:
        return list(self._names)


class LevelHandle:
    """Stands for a module evaluated at given parameters: call it, any of its methods, or any submodule.

    Parameters and buffers, read as attributes, are the substituted ones.

    Args:
        module: the level's module, or a submodule of it.
        values: the tensors to use for its parameters and buffers, by name; others are the module's own.
        substituted: names of those of ``values`` that are not the module's own.
        shared: where results of calls are kept and found again; None makes every call.
        compilation: makes the calls as compiled functions; None makes them as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        values: Mapping[str, Tensor],
        substituted: Collection[str] = (),
        shared: SharedCalls | None = None,
        compilation: Compilation | None = None,
    ) -> None:
        self._module = module
        self._values = values
        self._substituted = substituted
        self._shared = shared
        self._compilation = compilation

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._evaluate("__call__", *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._values:
            return self._values[name]
        attribute = getattr(self._module, name)
        if isinstance(attribute, nn.Module):
            prefix = f"{name}."
            inner = {key[len(prefix) :]: value for key, value in self._values.items() if key.startswith(prefix)}
            substituted = {key[len(prefix) :] for key in self._substituted if key.startswith(prefix)}
            return LevelHandle(attribute, inner, substituted, self._shared, self._compilation)
        if getattr(attribute, "__self__", None) is self._module:
            return partial(self._evaluate, name)
        return attribute

    def _evaluate(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        def compute() -> Any:
            if self._compilation is not None:
                return self._compilation.call(self._module, method, self._values, arguments, keywords)
            return ModuleCall(self._module, getattr(self._module, method)).at(self._values, arguments, keywords)

        if self._shared is None:
            return compute()
        # A compiled call's result has no second derivative.
        target = (id(self._module), method, self._compilation is None)
        parameters = [value for name, value in self._values.items() if name in self._substituted]
        moving = {name for name, _ in self._module.named_buffers()}
        buffers = [value for name, value in self._values.items() if name in moving]
        return self._shared.call(target, parameters, (arguments, keywords), buffers, compute)
