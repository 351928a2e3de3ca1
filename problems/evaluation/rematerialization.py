"""Layers whose activations are computed again when they are differentiated, instead of being kept until then.

Chen et al. 2016, "Training deep nets with sublinear memory cost". torch.utils.checkpoint hooks into what autograd
saves, which torch.func does not allow, and it keeps all of a gradient's own graph. Here a layer is a function of its
parameters and inputs; its pullback and its pushforward are functions of theirs; and each of them keeps no more than
what it was given, however often it is differentiated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from multilevel.problems.evaluation.autocast import AutocastState
from multilevel.problems.evaluation.module_call import ModuleCall
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.solvers.differentiation import computing_again, is_wrapped, may_have_tangent, modes_again

Tensors = tuple[Tensor, ...]
Indices = Sequence[int]


def rematerialize(layer: nn.Module) -> None:
    """Have a layer compute its activations again whenever it is differentiated, see ``rematerialized``.

    Parameters, buffers and hooks stay what and where they are; once is enough.
    """
    layer.forward = partial(rematerialized, layer, layer.forward)


def rematerialized(module: nn.Module, compute: Callable[..., Any], *inputs: Any, **keywords: Any) -> Any:
    """``compute(*inputs, **keywords)``, keeping nothing for its derivatives but parameters and inputs.

    Derivatives are those of a plain call, of any order, in reverse mode, under torch.func, and where these are mixed. A
    computation that is repeated finds the generators, autocast, buffers and torch function modes of the first one.
    Where nothing would be kept anyway, as no gradient is asked for, it is a plain call; and where tangents of
    ``forward_ad`` pass, so that the caller sees every function that they meet.

    Args:
        module: whose parameters and buffers ``compute`` uses; those that functional_call has put in place count.
        compute: of the module: a method of it, or a function that calls it.
        inputs: of ``compute``: tensors, in nested tuples, lists and dicts or not, and anything else.
        keywords: of ``compute``, in the same form.

    Returns:
        What ``compute`` returns: floating-point tensors, nested or not.

    Raises:
        RuntimeError: ``compute`` uses a tensor that requires a gradient and is no parameter of the module and no input.
    """
    call = ModuleCall(module, compute)
    parameters = dict(call.named_parameters())
    values, arguments = tree_flatten((inputs, keywords))
    indices = [index for index, value in enumerate(values) if isinstance(value, Tensor)]
    points = (*parameters.values(), *(values[index] for index in indices))
    recorded = torch.is_grad_enabled() and any(_is_recorded(point) for point in points)
    if not recorded or any(_is_dual(point) for point in points):
        return compute(*inputs, **keywords)
    constants = [None if isinstance(value, Tensor) else value for value in values]
    layer = _Layer(call, list(parameters), constants, indices, arguments, _Surroundings.capture(call, points))
    results = _Rematerialized.apply(layer, *points)
    return tree_unflatten(list(results), layer.results)


class _Function(ABC):
    """A function of tensors, its points, to a tuple of tensors, alike whenever it is evaluated."""

    @abstractmethod
    def __call__(self, *points: Tensor) -> Tensors: ...

    def pulled(self, points: Tensors, cotangents: Tensors, result_indices: Indices, point_indices: Indices) -> Tensors:
        """Gradients in the points at ``point_indices``, from cotangents of the results at ``result_indices``."""
        return _Rematerialized.apply(_Pullback(self, len(points), result_indices, point_indices), *points, *cotangents)


class _Rematerialized(torch.autograd.Function):
    """Evaluates a ``_Function``, and evaluates it again for each of its derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: _Function, *points: Tensor) -> Tensors:
        results = function(*(point.detach() for point in points))
        if any(result.requires_grad for result in results):
            raise RuntimeError("a rematerialized layer uses a tensor that is neither its parameter nor its input")
        return results

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        context.function = inputs[0]
        context.save_for_backward(*inputs[1:])
        context.save_for_forward(*inputs[1:])
        context.set_materialize_grads(False)

    @staticmethod
    def backward(context: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        points = context.saved_tensors
        result_indices, vectors = _present(cotangents)
        point_indices = [index for index, needed in enumerate(context.needs_input_grad[1:]) if needed]
        if not result_indices:
            return None, *([None] * len(points))
        gradients = context.function.pulled(points, vectors, result_indices, point_indices)
        slopes = dict(zip(point_indices, gradients, strict=True))
        return None, *(slopes.get(index) for index in range(len(points)))

    @staticmethod
    def jvp(context: Any, _: None, *tangents: Tensor | None) -> Tensors:
        points = context.saved_tensors
        moving, vectors = _present(tangents)
        return _Rematerialized.apply(_Pushforward(context.function, len(points), moving), *points, *vectors)


@dataclass(frozen=True)
class _Surroundings:
    """All that the result of a call depends on beside parameters and inputs, as it was before the call."""

    random: RandomState
    autocast: AutocastState
    modes: Sequence[tuple[TorchFunctionMode, TorchFunctionMode]]
    buffers: Mapping[str, Tensor]

    @classmethod
    def capture(cls, call: ModuleCall, points: Tensors) -> _Surroundings:
        buffers = {name: buffer.clone() for name, buffer in call.named_buffers()}
        return cls(RandomState.capture(), AutocastState.capture(points), modes_again(), buffers)

    @contextmanager
    def active(self, first: bool) -> Iterator[None]:
        """Within the block all is as it was; the generators of the ``first`` time move on."""
        with self.autocast.active(), nullcontext() if first else self.random.active(), computing_again(self.modes):
            yield


@dataclass
class _Layer(_Function):
    """A call on a module: its parameters and the tensors among its arguments to the tensors that it returns.

    Attributes:
        call: what is called.
        names: of the parameters.
        constants: the arguments, flat, None standing for each tensor.
        indices: of the tensors among them.
        arguments: the structure of the arguments.
        surroundings: of the first evaluation.
        results: the structure of what the call returns, after the first evaluation.
        evaluated: whether that has been.
    """

    call: ModuleCall
    names: Sequence[str]
    constants: Sequence[Any]
    indices: Indices
    arguments: TreeSpec
    surroundings: _Surroundings
    results: TreeSpec = field(init=False)
    evaluated: bool = field(default=False, init=False)

    def __call__(self, *points: Tensor) -> Tensors:
        first, self.evaluated = not self.evaluated, True
        values = _replaced(self.constants, self.indices, points[len(self.names) :])
        inputs, keywords = tree_unflatten(values, self.arguments)
        state = dict(zip(self.names, points, strict=False))
        if not first:
            state |= {name: buffer.clone() for name, buffer in self.surroundings.buffers.items()}
        with _gradients_enabled(), self.surroundings.active(first):
            results, self.results = tree_flatten(functional_call(self.call, state, inputs, keywords))
        return tuple(results)


@dataclass(frozen=True)
class _Pullback(_Function):
    """Points of a function, and cotangents of the results at ``result_indices``, to the gradients in the points at
    ``point_indices``."""

    function: _Function
    count: int  # of points
    result_indices: Indices
    point_indices: Indices

    def __call__(self, *points: Tensor) -> Tensors:
        points, cotangents = points[: self.count], points[self.count :]
        moved = [points[index] for index in self.point_indices]
        differentiable = torch.is_grad_enabled()

        def evaluate(*values: Tensor) -> Tensors:
            results = self.function(*_replaced(points, self.point_indices, values))
            return tuple(results[index] for index in self.result_indices)

        if torch._C._are_functorch_transforms_active():
            with _plain_attention():
                return vjp(evaluate, *moved)[1](cotangents)
        # Without torch.func attention can take the kernel that it has taken at first.
        with torch.enable_grad(), _plain_attention() if differentiable else nullcontext():
            leaves = [leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in moved]
            pairs = [pair for pair in zip(evaluate(*leaves), cotangents, strict=True) if pair[0].requires_grad]
            if not pairs:
                return tuple(torch.zeros_like(point) for point in moved)
            results, vectors = zip(*pairs, strict=True)
            return torch.autograd.grad(results, leaves, vectors, create_graph=differentiable, materialize_grads=True)


@dataclass(frozen=True)
class _Pushforward(_Function):
    """Points of a function and tangents of the points ``moving`` to the tangents of its results."""

    function: _Function
    count: int  # of points
    moving: Indices

    def __call__(self, *points: Tensor) -> Tensors:
        points, tangents = points[: self.count], points[self.count :]

        def evaluate(*values: Tensor) -> Tensors:
            return self.function(*_replaced(points, self.moving, values))

        with _plain_attention():
            return jvp(evaluate, tuple(points[index] for index in self.moving), tangents)[1]

    def pulled(self, points: Tensors, cotangents: Tensors, result_indices: Indices, point_indices: Indices) -> Tensors:
        """In the tangents: the function's own pullback. In its points: that pullback's derivative along the tangents.

        Not a reverse pass over the tangents, as torch's forward derivatives of some functions do not allow one.
        """
        points, tangents = points[: self.count], points[self.count :]
        primal_indices = [index for index in point_indices if index < self.count]
        pullback = _Pullback(self.function, self.count, result_indices, primal_indices)
        pushed = _Pushforward(pullback, self.count + len(cotangents), self.moving)
        in_points = _Rematerialized.apply(pushed, *points, *cotangents, *tangents) if primal_indices else ()
        tangent_indices = [self.moving[index - self.count] for index in point_indices if index >= self.count]
        if not tangent_indices:
            return in_points
        return *in_points, *self.function.pulled(points, cotangents, result_indices, tangent_indices)


@contextmanager
def _gradients_enabled() -> Iterator[None]:
    """``torch.enable_grad()``, which function modes see nothing of: to them it is no part of the layer."""
    before = torch.is_grad_enabled()
    with torch._C.DisableTorchFunction():
        torch._C._set_grad_enabled(True)
    try:
        yield
    finally:
        with torch._C.DisableTorchFunction():
            torch._C._set_grad_enabled(before)


def _present(vectors: Sequence[Tensor | None]) -> tuple[list[int], Tensors]:
    """The vectors that are there, and their indices."""
    pairs = [(index, vector) for index, vector in enumerate(vectors) if vector is not None]
    return [index for index, _ in pairs], tuple(vector for _, vector in pairs)


def _replaced(sequence: Sequence[Any], indices: Indices, values: Tensors) -> list[Any]:
    replaced = list(sequence)
    for index, value in zip(indices, values, strict=True):
        replaced[index] = value
    return replaced


def _plain_attention() -> AbstractContextManager[None]:
    """Attention's fused kernels have no second and no forward derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def _is_recorded(tensor: Tensor) -> bool:
    """Whether autograd or a torch.func.grad around it records what is computed from a tensor."""
    while is_wrapped(tensor) and not tensor.requires_grad:
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def _is_dual(tensor: Tensor) -> bool:
    """Whether it carries a tangent of ``forward_ad`` itself, not of torch.func, or is wrapped so that it may."""
    if forward_ad._current_level < 0 or any(
        interpreter.key() == TransformType.Jvp for interpreter in retrieve_all_functorch_interpreters()
    ):
        return False
    return may_have_tangent(tensor)
