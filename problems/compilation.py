"""Calls on levels as functions compiled by torch.compile, wherever they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves

from multilevel.problems.module_call import ModuleCall
from multilevel.problems.randomness import RandomState
from multilevel.solvers.differentiation import wants_higher_derivatives

Value = TypeVar("Value")
#: What torch.compile takes for ``backend``.
Backend = str | Callable[..., Any]

LONGEST_REASON = 200


class Compilation:
    """Compiles calls on levels, a function for each method of a module, and makes the others as they are.

    A compiled function has a gradient and no further derivative. So calls are made as they are within
    ``higher_derivatives``, under transforms of torch.func, in forward mode, and by losses that keep the graph of a
    gradient of their own. A method that draws random numbers is never compiled: from the same state of the generators a
    compiled function draws others, and one replay may be compiled where another is not. Nor is a method that
    torch.compile does not take whole, or whose inputs change their shapes too often for it.

    Args:
        backend: of torch.compile.

    Attributes:
        notices: a line on everything that is not compiled, once for each reason; whoever shows them takes them away.
    """

    def __init__(self, backend: Backend = "inductor") -> None:
        self.notices: list[str] = []
        self._backend = backend
        self._functions: dict[tuple[nn.Module, str], Callable[..., Any] | None] = {}
        self._differentiating: set[str] = set()  # levels
        self._told: set[str] = set()

    @classmethod
    def of(cls, backend: bool | Backend) -> Compilation | None:
        """With a backend, or torch.compile's own (True); None without one (False)."""
        if backend is False:
            return None
        return cls() if backend is True else cls(backend)

    def attempt(self, level: str, evaluate: Callable[[Compilation | None], Value]) -> Value:
        """``evaluate(self)``, or ``evaluate(None)`` where the evaluation can do with no compiled function.

        Args:
            level: whose loss is evaluated.
            evaluate: evaluates it, its calls made by what is given; it may be called twice, from one random state.
        """
        if wants_higher_derivatives() or level in self._differentiating:
            return evaluate(None)
        before = RandomState.capture()
        try:
            with _GradientGraphs():
                return evaluate(self)
        except _GradientGraphError:
            before.restore()
            self._differentiating.add(level)
            self._tell(f"the loss of level {level!r}", "it keeps the graph of a gradient of its own")
            return evaluate(None)

    def call(
        self,
        module: nn.Module,
        method: str,
        values: Mapping[str, Tensor],
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
    ) -> Any:
        """The result of a module's method at given parameters and buffers, see ``ModuleCall.at``."""
        called = ModuleCall(module, getattr(module, method))
        name = type(module).__name__ + ("" if method == "__call__" else f".{method}")
        if (module, method) not in self._functions:
            self._functions[module, method] = _compiled(called, f"{name}_{len(self._functions)}", self._backend)
        function = self._functions[module, method]
        if function is None or not self._usable():
            return called.at(values, arguments, keywords)
        inputs = (dict(values), arguments, dict(keywords))
        before = _Before([values[name] for name, _ in module.named_buffers() if name in values])
        try:
            # Where there is nothing to differentiate, what was compiled without gradients serves.
            with _compiling(), torch.set_grad_enabled(torch.is_grad_enabled() and _requires_grad(inputs)):
                result = function(*inputs)
            if before.random.equals(RandomState.capture()):
                return result
            reason = "it draws random numbers"
        except Exception as error:  # backends raise all kinds; an error of the module's own is raised again below
            reason = _reason(error)
        before.restore()
        self._functions[module, method] = None
        self._tell(name, reason)
        return called.at(values, arguments, keywords)

    def _usable(self) -> bool:
        """Whether a compiled function can be called here."""
        foreign = [type(mode) for mode in _get_current_function_mode_stack() if not _is_own(mode)]
        if foreign:
            self._tell("nothing", f"the mode {foreign[0].__name__} is active")
        transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        return not (foreign or transformed or wants_higher_derivatives())

    def _tell(self, what: str, reason: str) -> None:
        reason = " ".join(reason.partition("\n\n")[0].split())
        if reason not in self._told:
            self._told.add(reason)
            short = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
            self.notices.append(f"compile: {what} is not compiled: {short}")


class _Before:
    """What a call may move: the generators, and buffers."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.random = RandomState.capture()
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def restore(self) -> None:
        self.random.restore()
        for buffer, value in self._buffers:
            buffer.copy_(value)


class _GradientGraphError(Exception):
    """A loss keeps the graph of a gradient of its own, to differentiate it again."""


class _GradientGraphs(TorchFunctionMode):
    """Raises where the graph of a gradient is to be kept."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        given = keywords or {}
        kept = given.get("create_graph") or given.get("retain_graph") or any(one is True for one in arguments)
        # torch.func keeps graphs, of calls that are not compiled
        transformed = torch._C._are_functorch_transforms_active()
        if kept and not transformed and function in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            raise _GradientGraphError
        return function(*arguments, **given)


def _compiled(called: ModuleCall, name: str, backend: Backend) -> Callable[..., Any]:
    """``ModuleCall.at`` as a compiled function."""

    def function(values: Mapping[str, Tensor], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        return called.at(values, arguments, keywords)

    # torch.compile keeps what it compiles, and counts it against a limit, by code.
    code = function.__code__.replace(co_name=name)
    own = FunctionType(code, function.__globals__, name, None, function.__closure__)
    return torch.compile(own, backend=backend, fullgraph=True, dynamic=False)


@contextmanager
def _compiling() -> Iterator[None]:
    """Within the block no function mode is active, and what is compiled has its backward pass compiled at once.

    Functions are compiled anew for each stack of modes; and an error in a backward pass that is compiled where it is
    first used would come too late to make the call as it is.
    """
    with ExitStack() as stack:
        for _ in _get_current_function_mode_stack():
            stack.enter_context(_pop_mode_temporarily())
        if hasattr(functorch_config, "force_non_lazy_backward_lowering"):  # torch 2.6 has none
            stack.enter_context(functorch_config.patch(force_non_lazy_backward_lowering=True))
        yield


def _requires_grad(inputs: Any) -> bool:
    return any(isinstance(one, Tensor) and one.requires_grad for one in tree_leaves(inputs))


def _reason(error: Exception) -> str:
    name = type(error).__name__
    return "the shapes of what it is given change too often" if "LimitHit" in name else f"{name}: {error}"


def _is_own(mode: TorchFunctionMode) -> bool:
    """Whether a mode is one of ours, which do nothing that a compiled function would need."""
    return type(mode).__module__.partition(".")[0] == __name__.partition(".")[0]
