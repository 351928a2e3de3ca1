"""Layers that recompute their activations when differentiated instead of keeping them.

Chen et al. 2016, "Training deep nets with sublinear memory cost". torch.utils.checkpoint hooks into autograd's saved
tensors, which torch.func does not allow, and keeps all of a gradient's graph. Here a layer is a function of its
parameters and inputs, its pullback and its pushforward are functions of theirs, and each keeps only its inputs, however
often it is differentiated.
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
    """Make a layer recompute its activations whenever it is differentiated, see ``rematerialized``.

    Parameters, buffers and hooks stay unchanged. Call this once per layer.
    """
    layer.forward = partial(rematerialized, layer, layer.forward)


def rematerialized(module: nn.Module, compute: Callable[..., Any], *inputs: Any, **keywords: Any) -> Any:
    """Call ``compute(*inputs, **keywords)``, keeping only parameters and inputs for its derivatives.

    Derivatives of any order equal those of a plain call, in reverse mode, under torch.func, and in mixtures of both. A
    recomputation restores the generators, autocast, buffers and torch function modes of the first computation. It is a
    plain call if no gradient is needed, so nothing would be kept, and if ``forward_ad`` tangents pass, so that the
    caller sees every function that they meet.

    Args:
        module: the module whose parameters and buffers ``compute`` uses; functional_call may have substituted them.
        compute: a method of the module, or a function that calls it.
        inputs: positional arguments of ``compute``: tensors, also in nested tuples, lists and dicts, and any other
            values.
        keywords: keyword arguments of ``compute``, in the same form.

    Returns:
        The result of ``compute``: floating-point tensors, possibly nested.

    Raises:
        RuntimeError: ``compute`` uses a tensor that requires a gradient but is neither a parameter of the module nor an
            input.
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
    """A deterministic function of tensors, its points, that returns a tuple of tensors."""

    @abstractmethod
    def __call__(self, *points: Tensor) -> Tensors: ...

    def pulled(self, points: Tensors, cotangents: Tensors, result_indices: Indices, point_indices: Indices) -> Tensors:
        """Gradients in the points at ``point_indices`` from cotangents of the results at ``result_indices``."""
        return _Rematerialized.apply(_Pullback(self, len(points), result_indices, point_indices), *points, *cotangents)


class _Rematerialized(torch.autograd.Function):
    """Evaluates a ``_Function``, and again for each of its derivatives."""

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
    """Everything that the result of a call depends on except parameters and inputs, in its state before the call."""

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
        """Restore everything within the block; the generators of the ``first`` evaluation advance."""
        with self.autocast.active(), nullcontext() if first else self.random.active(), computing_again(self.modes):
            yield


@dataclass
class _Layer(_Function):
    """A call on a module, as a function from its parameters and tensor arguments to the tensors that it returns.

    Attributes:
        call: the called function.
        names: names of the parameters.
        constants: the flattened arguments, with None for each tensor.
        indices: indices of the tensors among them.
        arguments: the structure of the arguments.
        surroundings: surroundings of the first evaluation.
        results: the structure of the result, after the first evaluation.
        evaluated: whether the first evaluation has happened.
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
        # Without torch.func, attention can take the same kernel as in the first evaluation.
        with torch.enable_grad(), _plain_attention() if differentiable else nullcontext():
            leaves = [leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in moved]
            pairs = [pair for pair in zip(evaluate(*leaves), cotangents, strict=True) if pair[0].requires_grad]
            if not pairs:
                return tuple(torch.zeros_like(point) for point in moved)
            results, vectors = zip(*pairs, strict=True)
            return torch.autograd.grad(results, leaves, vectors, create_graph=differentiable, materialize_grads=True)


@dataclass(frozen=True)
class _Pushforward(_Function):
    """A function from points and tangents of the points ``moving`` to tangents of the results."""

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
        """For the tangents, the function's pullback; for its points, the pullback's derivative along the tangents.

        This avoids a reverse pass over the tangents, which torch's forward derivatives of some functions do not allow.
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
    """``torch.enable_grad()``, hidden from function modes, since it does not belong to the layer."""
    before = torch.is_grad_enabled()
    with torch._C.DisableTorchFunction():
        torch._C._set_grad_enabled(True)
    try:
        yield
    finally:
        with torch._C.DisableTorchFunction():
            torch._C._set_grad_enabled(before)


def _present(vectors: Sequence[Tensor | None]) -> tuple[list[int], Tensors]:
    """The vectors that are not None, and their indices."""
    pairs = [(index, vector) for index, vector in enumerate(vectors) if vector is not None]
    return [index for index, _ in pairs], tuple(vector for _, vector in pairs)


def _replaced(sequence: Sequence[Any], indices: Indices, values: Tensors) -> list[Any]:
    replaced = list(sequence)
    for index, value in zip(indices, values, strict=True):
        replaced[index] = value
    return replaced


def _plain_attention() -> AbstractContextManager[None]:
    """Use plain attention, since fused kernels have neither second nor forward derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


def _is_recorded(tensor: Tensor) -> bool:
    """Whether autograd or a torch.func.grad around it records what is computed from a tensor."""
    while is_wrapped(tensor) and not tensor.requires_grad:
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def _is_dual(tensor: Tensor) -> bool:
    """Whether a tensor carries a tangent of ``forward_ad`` itself, not of torch.func, or is wrapped so that it may."""
    if forward_ad._current_level < 0 or any(
        interpreter.key() == TransformType.Jvp for interpreter in retrieve_all_functorch_interpreters()
    ):
        return False
    return may_have_tangent(tensor)
