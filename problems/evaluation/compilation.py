"""Compiles calls on levels with torch.compile, in updates and wherever possible."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves, tree_map_only

from multilevel.problems.evaluation.loss_mode import LossMode
from multilevel.problems.evaluation.module_call import BufferedCall
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.solvers.differentiation import wants_higher_derivatives

#: The type of torch.compile's ``backend``.
Backend = str | Callable[..., Any]

LONGEST_REASON = 200
_ABSENT = object()
_AS_WRITTEN: ContextVar[bool] = ContextVar("as written", default=False)


class Compilation:
    """Compiles calls on levels within updates, one function per method of a module, and runs all other calls as
    written.

    A compiled function has a gradient but no further derivatives. So calls run as written within
    ``higher_derivatives``, under torch.func transforms, in forward mode, within torch.utils.checkpoint, and in losses
    that take a gradient and keep its graph. A method that draws random numbers is never compiled, since from the same
    generator state a compiled function draws other numbers than a replay. Nor is a method that torch.compile cannot
    take as a whole, or whose input shapes change too often.

    Args:
        backend: backend of torch.compile.

    Attributes:
        notices: one line per reason on calls that are not compiled; the code that shows the lines removes them.
    """

    _mode: LossMode  # of the evaluation that is under way

    def __init__(self, backend: Backend = "inductor") -> None:
        self.notices: list[str] = []
        self._backend = backend
        self._functions: dict[tuple[nn.Module, str], Callable[..., Any] | None] = {}
        self._differentiating: set[str] = set()  # levels
        self._reported: set[str] = set()
        self._added: list[tuple[dict[str, Any], str, Any]] = []  # (attributes of a module, name, value)

    @classmethod
    def of(cls, backend: bool | Backend) -> Compilation | None:
        """A compilation with the given backend, or torch.compile's default (True); None for False."""
        if backend is False:
            return None
        return cls() if backend is True else cls(backend)

    @contextmanager
    def installed(self, level: str, modules: Sequence[nn.Module], mode: LossMode) -> Iterator[None]:
        """Within the block, compile calls on these modules and on methods that their classes add.

        A nested call is part of the outer call. Anything that the user has compiled runs as written.

        Args:
            level: the level of the evaluated loss.
            modules: the modules of all levels, including every submodule.
            mode: the mode of the evaluation; compiled calls run outside it.

        Raises:
            GradientGraphError: the loss takes a gradient and keeps its graph. Later blocks for this loss compile
                nothing.
        """
        if wants_higher_derivatives() or level in self._differentiating:
            with as_written():
                yield
            return
        self._mode = mode
        self._added = [replacement for module in modules for replacement in self._replacements(module)]
        replaced = [(attributes, name, attributes.get(name, _ABSENT)) for attributes, name, _ in self._added]
        self._install()
        try:
            with torch.compiler.set_stance("force_eager"), _GradientGraphs():
                yield
        except GradientGraphError:
            self._differentiating.add(level)
            self._tell(f"the loss of level {level!r} is", "it takes a gradient and keeps its graph")
            raise
        finally:
            self._remove()
            self._added = []
            for attributes, name, value in replaced:
                if value is not _ABSENT:
                    attributes[name] = value

    def _replacements(self, module: nn.Module) -> list[tuple[dict[str, Any], str, Callable[..., Any]]]:
        """Replacements for a module's calls; a torch.compile wrapper delegates to the original."""
        if _is_wrapper(module):
            return []
        kind: Any = type(module)  # mypy does not consider a class hashable
        methods = [method for method in _methods(kind) if method not in vars(module)]
        names = {"_compiled_call_impl": "_call_impl", **{method: method for method in methods}}
        return [(vars(module), name, partial(self._call, module, method)) for name, method in names.items()]

    def _install(self) -> None:
        for attributes, name, function in self._added:
            attributes[name] = function

    def _remove(self) -> None:
        for attributes, name, _ in self._added:
            attributes.pop(name, None)

    def _call(self, module: nn.Module, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Make a call from a loss; nested calls are not compiled separately."""
        self._remove()
        try:
            return self._result(module, method, arguments, keywords)
        finally:
            self._install()

    def _result(self, module: nn.Module, method: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """The result of a module's method at the module's current parameters and buffers."""
        plain = getattr(module, method)
        name = type(module).__name__ + ("" if method == "_call_impl" else f".{method}")
        if (module, method) not in self._functions:
            self._functions[module, method] = self._function(module, plain, name)
        function = self._functions[module, method]
        if function is None or not self._usable():
            return plain(*arguments, **keywords)
        values = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._mode.watch((*values.values(), *arguments, *keywords.values()))
        before = _Before(list(module.buffers()))
        try:
            with _compiling():
                result, buffers = function(self._nominal(values), arguments, dict(keywords))
            if before.random.equals(RandomState.capture()):
                if not _requires_grad((values, arguments, keywords)):
                    result = tree_map_only(Tensor, Tensor.detach, result)
                _assign(module, buffers)
                return result
            reason = "it draws random numbers"
        except Exception as error:  # backends raise any type; the module's own errors are raised again below
            reason = _reason(error)
        before.restore()
        self._functions[module, method] = None
        self._tell(f"{name} is", reason)
        return plain(*arguments, **keywords)

    def _function(self, module: nn.Module, plain: Callable[..., Any], name: str) -> Callable[..., Any] | None:
        """A compiled function, compiled on its first call; None if torch would compile it incorrectly."""
        if any(buffer.ndim == 0 and buffer.dtype == torch.float64 for buffer in module.buffers()):
            self._tell(f"{name} is", "torch.compile loses in-place changes of a float64 buffer without dimensions")
            return None
        return _compiled(BufferedCall(module, plain), f"{name}_{len(self._functions)}", self._backend)

    def _nominal(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values, with requires_grad of the parameters they replace, since a module may check it."""
        return {
            name: value
            if value.requires_grad or not self._mode.nominal.get(id(value))
            else value.detach().requires_grad_()
            for name, value in values.items()
        }

    def _usable(self) -> bool:
        """Whether a compiled function may be called here."""
        foreign = [type(mode) for mode in _get_current_function_mode_stack() if not _is_own(mode)]
        if foreign:
            self._tell("calls are", f"the mode {foreign[0].__name__} is active")
        transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        return not (foreign or transformed or wants_higher_derivatives() or is_as_written())

    def _tell(self, subject: str, reason: str) -> None:
        reason = " ".join(reason.partition("\n\n")[0].split())
        if reason not in self._reported:
            self._reported.add(reason)
            short = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
            self.notices.append(f"compile: {subject} not compiled: {short}")


class as_written:  # noqa: N801  # a block, like torch.no_grad
    """Within the block, nothing is compiled, neither by the engine nor by the user."""

    def __enter__(self) -> None:
        self._around = is_as_written()
        if self._around:
            return
        self._token = _AS_WRITTEN.set(True)
        # The import takes seconds; code that compiles has already imported it.
        self._stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        self._stance.__enter__()

    def __exit__(self, *error: object) -> None:
        if not self._around:
            self._stance.__exit__(None, None, None)
            _AS_WRITTEN.reset(self._token)


#: Whether this is within ``as_written``.
is_as_written = _AS_WRITTEN.get


def compiled_by_user(modules: Mapping[str, nn.Module]) -> list[str]:
    """A line about levels that the user has compiled; empty if there are none.

    >>> compiled_by_user({"fit": nn.Linear(2, 1)})
    []
    """
    levels = [
        name
        for name, module in modules.items()
        if any(_is_wrapper(part) or part._compiled_call_impl is not None for part in module.modules())
    ]
    if not levels:
        return []
    names = ", ".join(repr(name) for name in levels)
    return [
        f"level{'s' * (len(levels) > 1)} {names}: compiled by torch.compile, but run as written, since solves need "
        "derivatives that compiled functions lack; compile=true or Engine(compile=True) compiles updates"
    ]


class _Before:
    """The state that a call may change: generators and buffers."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.random = RandomState.capture()
        self._buffers = [(buffer, buffer._version, buffer.clone()) for buffer in buffers]

    def restore(self) -> None:
        self.random.restore()
        for buffer, version, value in self._buffers:
            if buffer._version != version:  # autograd considers a buffer changed once it is written to
                buffer.copy_(value)


class GradientGraphError(Exception):
    """A loss takes a gradient and keeps its graph, to differentiate it again."""


class _GradientGraphs(TorchFunctionMode):
    """Raises if a gradient's graph is to be kept."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        keeps = keywords.get("create_graph") or keywords.get("retain_graph") or any(flag is True for flag in arguments)
        # torch.func keeps graphs, but of calls that are not compiled
        transformed = torch._C._are_functorch_transforms_active()
        if keeps and not transformed and function in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            raise GradientGraphError
        return function(*arguments, **keywords)


def _compiled(called: BufferedCall, name: str, backend: Backend) -> Callable[..., Any]:
    """Compile a function of parameters, buffers, arguments and keywords that returns the same as ``BufferedCall``."""

    def function(values: Mapping[str, Tensor], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        return called.at(values, arguments, keywords)

    # torch.compile caches compiled functions by code object, up to a limit.
    code = function.__code__.replace(co_name=name)
    renamed = FunctionType(code, function.__globals__, name, None, function.__closure__)
    return torch.compile(renamed, backend=backend, fullgraph=True, dynamic=False)


@contextmanager
def _compiling() -> Iterator[None]:
    """Within the block, no function mode is active, and backward passes are compiled immediately.

    torch recompiles functions for each stack of modes. An error in a backward pass compiled on first use would come too
    late to run the call as written.
    """
    with torch.compiler.set_stance("default"), ExitStack() as stack:
        for _ in _get_current_function_mode_stack():
            stack.enter_context(_pop_mode_temporarily())
        if hasattr(functorch_config, "force_non_lazy_backward_lowering"):  # torch 2.6 has none
            stack.enter_context(functorch_config.patch(force_non_lazy_backward_lowering=True))
        yield


@cache
def _methods(kind: type[nn.Module]) -> tuple[str, ...]:
    """The public methods that a module class or its bases add to ``nn.Module``."""
    bases = [base for base in kind.__mro__ if issubclass(base, nn.Module) and base is not nn.Module]
    names = {name for base in bases for name, value in vars(base).items() if isinstance(value, FunctionType)}
    return tuple(sorted(name for name in names - set(dir(nn.Module)) - {"forward"} if name[0] != "_"))


def _assign(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Store the buffers that a compiled call has reassigned in their module."""
    for name, buffer in buffers.items():
        path, _, key = name.rpartition(".")
        module.get_submodule(path)._buffers[key] = buffer.detach()


def _is_wrapper(module: nn.Module) -> bool:
    """Whether ``torch.compile(module)`` created it."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def _requires_grad(inputs: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(inputs))


def _reason(error: Exception) -> str:
    name = type(error).__name__
    return "the shapes of its inputs change too often" if "LimitHit" in name else f"{name}: {error}"


def _is_own(mode: TorchFunctionMode) -> bool:
    """Whether a mode belongs to this project; compiled functions do not need those modes."""
    return type(mode).__module__.partition(".")[0] == __name__.partition(".")[0]
