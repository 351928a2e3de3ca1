"""Products by forward mode combined with reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import forward_ad
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from multilevel.solvers.differentiation import is_wrapped, may_have_tangent, writes_in_place
from multilevel.solvers.errors import ProductError
from multilevel.solvers.gradients import detached_leaves, gradients, grouped, keyed, mean_over_parts
from multilevel.solvers.lower_level import Loss, Prediction
from multilevel.solvers.products.base import Products, Reads
from multilevel.solvers.products.replacements import REPLACEMENTS
from multilevel.solvers.products.stop_gradients import keeps_graph
from multilevel.solvers.vectors import Tensors


class ForwardProducts(Products):
    """Forward mode combined with reverse mode: exact, without a radius, and without a graph of the gradient.

    Hessian products are forward over reverse: the derivative along v of the gradient. Mixed products are reverse over
    forward, which is cheaper for them: the tangent of the loss along v, then one reverse pass to the levels read. If a
    tangent and a gradient meet in a function outside ``FOLLOWED``, they are forward over reverse too: torch's forward
    derivatives of some functions treat intermediate values as constants (the statistics of a normalization, the factors
    of a linear solve), and a reverse pass over them is silently wrong.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4):

        >>> products = ForwardProducts(lower)
        >>> products.hessian({"p": torch.ones(3)})
        {'p': tensor([1., 2., 4.])}
        >>> products.mixed({"p": torch.ones(3)})
        {'upper': {'r': tensor([-1., -1., -1.])}}
    """

    mode = "forward mode"
    lacks = "forward derivative"
    remedy = (
        "solver.product=reverse works if it has a second derivative, solver.product=finite_difference needs only "
        "first derivatives"
    )

    def hessian(self, direction: Tensors, read_direction: Mapping[str, Tensors] | None = None) -> dict[str, Tensor]:
        reads = as_dicts(self.lower.reads)
        if read_direction is None:
            return self._forward(lambda loss: lambda p: grad(cut(loss))(p, reads), (direction,))
        return self._forward(lambda loss: grad(cut(loss)), (direction, as_dicts(read_direction)))

    def mixed(self, direction: Tensors) -> Reads:
        try:
            return self._reverse(direction)
        except ProductError:
            reads = as_dicts(self.lower.reads)
            return self._forward(lambda loss: lambda p: grad(cut(loss), 1)(p, reads), (direction,))

    def output_tangents(self, prediction: Prediction, direction: Tensors) -> list[Tensor]:
        def outputs(parameters: Any) -> list[Tensor]:
            with NoGradientNoTangent():
                return list(prediction.outputs(parameters, self.lower.reads))

        return jvp(outputs, (dict(self.lower.parameters),), (dict(direction),))[1]

    def _reverse(self, direction: Tensors) -> Reads:
        """Mixed product, reverse over forward."""
        reads = {level: detached_leaves(tensors) for level, tensors in self.lower.reads.items()}
        leaves = keyed(reads)

        def term(loss: Loss) -> dict[tuple[str, str], Tensor | None]:
            # Not torch.func: its wrapped tensors rule out the fused attention kernel where only a gradient passes.
            with forward_ad.dual_level():
                point = {
                    name: make_dual(tensor.detach(), direction[name], level=0)
                    for name, tensor in self.lower.parameters.items()
                }
                with ReverseFollows():
                    value = loss(point, reads)
                tangent = unpack_dual(value, level=0)[1]
            return {} if tangent is None else gradients(tangent, leaves)

        with self.explained(fused=True):
            product = mean_over_parts(term, self.lower.losses, leaves)
        self.evaluations += 1
        self.products += 1
        return grouped(product, reads)

    def _forward(self, slope_of: Callable[[Loss], Any], directions: tuple[Any, ...]) -> Any:
        """The derivative of ``slope_of(loss)`` along directions in (p, r), averaged over the parts of the batch."""
        points = (dict(self.lower.parameters), as_dicts(self.lower.reads))[: len(directions)]
        vectors = tuple(dict(direction) for direction in directions)
        total: Any = None
        with self.explained():
            for loss in self.lower.losses:
                term = jvp(slope_of(loss), points, vectors)[1]
                total = term if total is None else tree_map(torch.add, total, term)
        self.evaluations += 1
        self.products += 1
        count = len(self.lower.losses)
        return total if count == 1 else tree_map(lambda tensor: tensor * (1 / count), total)


#: Functions whose forward derivatives overwrite values that a reverse pass over them needs.
WRITING = frozenset(
    "softmax log_softmax logsumexp cross_entropy scaled_dot_product_attention multi_head_attention_forward".split()
)

#: Functions whose tangents a reverse pass follows, each tested.
FOLLOWED = WRITING | frozenset(
    """
    add radd sub rsub mul rmul div rdiv truediv rtruediv neg pow rpow square sqrt rsqrt reciprocal exp log log1p
    sigmoid log_sigmoid tanh sin cos abs relu gelu silu softplus leaky_relu elu
    matmul rmatmul mm bmm mv dot linear conv1d conv2d embedding dropout
    sum mean mse_loss binary_cross_entropy_with_logits nll_loss
    get getitem view view_as reshape flatten unflatten transpose permute t squeeze unsqueeze expand expand_as repeat
    cat stack chunk split unbind gather index_select where flip contiguous clone to float double detach
    """.split()
)


#: Functions that need or change the graph of reverse mode, which forward mode does not have.
GRAPH_FUNCTIONS = frozenset([Tensor.register_hook, Tensor.retain_grad, Tensor.detach_, Tensor.backward])

#: Binary functions that are affine in the first operand; those linear in it; and the largest small operand.
BINARY = frozenset("add radd sub rsub mul rmul div truediv".split())
SCALING = frozenset("mul rmul div truediv".split())
SMALL = 1000

# forward_ad's functions of these names look for exporters and load decompositions in every call.
make_dual, unpack_dual = torch._VF._make_dual, torch._VF._unpack_dual


class _NotFollowedError(ProductError):
    """A tangent and a gradient meet in a function whose tangent a reverse pass may not differentiate."""


class OutOfPlace(TorchDispatchMode):
    """Changes nothing, but makes torch use its differentiable forward derivatives.

    Without a dispatch mode, those of softmax and similar functions overwrite values that a reverse pass needs.
    """

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return function(*arguments, **(keywords or {}))


class NoGradientNoTangent(TorchFunctionMode):
    """Hides code that runs without gradients from forward mode, as it is hidden from reverse mode.

    Replaces functions that torch differentiates incorrectly in forward mode.

    Raises:
        ProductError: in the loss, if a function depends on the graph of reverse mode, see ``needs_graph``.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if needs_graph(function, arguments, keywords):
            descriptor = getattr(function, "__self__", None)  # a tensor attribute
            name = getattr(descriptor or function, "__name__", str(function))
            raise ProductError(f"{name} has no {ForwardProducts.lacks}: {ForwardProducts.remedy}")
        function = REPLACEMENTS.get(function, function)
        if function == Tensor.data.__set__:  # type: ignore[attr-defined]  # what torch.func wraps ends with the product
            arguments = (arguments[0], _unwrapped(arguments[1]))
        if torch.is_grad_enabled():
            return function(*arguments, **keywords)
        if writes_in_place(function):  # changes the values, not the tangent
            result = function(*without_tangents(arguments), **without_tangents(keywords))
            return None if result is None else arguments[0]
        return without_tangents(function(*arguments, **keywords))


def needs_graph(function: Any, arguments: Any, keywords: Mapping[str, Any]) -> bool:
    """Whether a function needs the graph of reverse mode, changes it, or defines a derivative for reverse mode only."""
    if function in GRAPH_FUNCTIONS:
        return isinstance(arguments[0], Tensor) and arguments[0].is_floating_point()
    if function == Tensor.data.__set__:  # type: ignore[attr-defined]
        return may_have_tangent(arguments[0])
    if function is torch.autograd.grad:
        return not keeps_graph(arguments, **keywords)
    custom = isinstance(function, OpOverload | OpOverloadPacket) and not str(function).startswith(("aten.", "prims."))
    return custom and any(isinstance(leaf, Tensor) for leaf in tree_leaves((arguments, keywords)))


def _unwrapped(tensor: Tensor) -> Tensor:
    """The values, without tangent, of a tensor that torch.func may have wrapped."""
    if not is_wrapped(tensor):
        return tensor.detach()
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def without_tangents(values: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach() if tensor.is_floating_point() else tensor, values)


class ReverseFollows(NoGradientNoTangent):
    """Makes each function compute tangents that a reverse pass can differentiate, at the least cost; raises if that is
    impossible."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        kind = _kind_of(function) if torch.is_grad_enabled() else None
        if kind == "binary" and len(arguments) == 2 and not keywords:
            return _binary(function, *arguments)
        if kind is not None:
            return function(*arguments, **(keywords or {}))
        tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        dual = [tensor for tensor in tensors if forward_ad.unpack_dual(tensor).tangent is not None]
        name = getattr(function, "__name__", "").strip("_")
        has_both = bool(dual) and any(tensor.requires_grad for tensor in tensors)
        with ExitStack() as stack:
            if dual and "attention" in name:  # fused kernels have no forward derivative
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if has_both and name in WRITING:
                stack.enter_context(OutOfPlace())
            result = super().__torch_function__(function, types, arguments, keywords)
        if has_both and name not in FOLLOWED and any(_carries_both(leaf) for leaf in tree_leaves(result)):
            raise _NotFollowedError
        return result


@lru_cache(1024)
def _kind_of(function: Any) -> str | None:
    """Whether a function is called directly ("followed") or by ``_binary``; None if its arguments decide."""
    full_name = getattr(function, "__name__", "")
    name = full_name.strip("_")
    if function in REPLACEMENTS or "attention" in name or name in WRITING or name not in FOLLOWED:
        return None
    if full_name.endswith("_") and not full_name.endswith("__"):
        return None
    return "binary" if name in BINARY else "followed"


def _binary(function: Any, first: Any, second: Any) -> Any:
    """``function(first, second)``, where each operand may have a tangent.

    If one operand has no tangent, torch runs Python code that takes longer than an operation on a small tensor.
    """
    if isinstance(second, int | float) and isinstance(first, Tensor):
        primal, tangent = unpack_dual(first, level=0)
        if tangent is None or not primal.is_floating_point():
            return function(first, second)
        scales = function.__name__.strip("_") in SCALING
        return make_dual(function(primal, second), function(tangent, second if scales else 0), level=0)
    for operand in (first, second):
        if not isinstance(operand, Tensor) or operand.numel() > SMALL or not operand.is_floating_point():
            return function(first, second)
    lacks = [unpack_dual(operand, level=0)[1] is None for operand in (first, second)]
    if lacks == [True, False]:
        first = make_dual(first, torch.zeros_like(first), level=0)
    if lacks == [False, True]:
        second = make_dual(second, torch.zeros_like(second), level=0)
    return function(first, second)


def _carries_both(value: Any) -> bool:
    """Whether a value is a tensor that carries both a tangent and a gradient."""
    return isinstance(value, Tensor) and value.requires_grad and forward_ad.unpack_dual(value).tangent is not None


def cut(loss: Loss) -> Callable[[Any, Any], Tensor]:
    """The loss, without tangents through code that runs without gradients."""

    def evaluate(parameters: Any, reads: Any) -> Tensor:
        with NoGradientNoTangent():
            return loss(parameters, reads)

    return evaluate


def as_dicts(reads: Mapping[str, Tensors]) -> dict[str, dict[str, Tensor]]:
    return {level: dict(tensors) for level, tensors in reads.items()}
