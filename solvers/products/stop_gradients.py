"""Holds a loss's detached values while its parameters move, so that finite differences treat them as constants, as
autograd does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from multilevel.solvers.errors import ProductError
from multilevel.solvers.gradients import detached_leaves, gradients, mean_over_parts
from multilevel.solvers.lower_level import LowerLevel
from multilevel.solvers.vectors import Tensors

#: Functions with results (tensors or numbers) outside the graph.
CUTTING = frozenset(
    [
        Tensor.detach,
        Tensor.detach_,
        torch.detach,
        torch.detach_,
        Tensor.data.__get__,  # type: ignore[attr-defined]
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.__float__,
        Tensor.__int__,
        Tensor.__bool__,
        Tensor.__index__,
        Tensor.__deepcopy__,
        Tensor.__format__,
        Tensor.new_tensor,
        torch.tensor,
        torch.equal,
        torch.allclose,
        torch.is_nonzero,
    ]
)


#: Functions with results that may re-enter the graph unseen.
LEAVING_TORCH = frozenset(
    [Tensor.__dlpack__, Tensor.__array__, Tensor.untyped_storage, Tensor.data.__set__]  # type: ignore[attr-defined]
)


class HeldLosses:
    """A lower level's losses at moved parameters, with everything that they detach held at the current point.

    To autograd, the results of ``detach``, ``no_grad`` and ``item`` are constants. A loss that uses detached values is
    evaluated once more at the current point.

    Args:
        lower: the level.

    Attributes:
        evaluations: evaluations at the current point, over the whole batch.
    """

    def __init__(self, lower: LowerLevel) -> None:
        self.evaluations = 0
        self._lower = lower
        self._held: list[list[Any] | None] = [None] * len(lower.losses)

    def at(self, part: int, parameters: Tensors, reads: Mapping[str, Tensors]) -> Tensor:
        """The loss on one part of the batch at ``parameters`` and ``reads``.

        Raises:
            ProductError: the loss detaches other values than at the current point.
        """
        loss = self._lower.losses[part]
        if self._held[part] is None:
            if not self._lower.choice.detaches:
                with ReuseDetection() as detection:
                    value = loss(parameters, reads)
                if not detection.used:
                    return value
                del value
                self._lower.choice.detaches = True
            with StopGradients() as current:
                loss(self._lower.parameters, self._lower.reads)
            self._held[part] = current.values
            self.evaluations += part == 0
        with StopGradients(self._held[part]) as moved:
            value = loss(parameters, reads)
        moved.check()
        return value

    def mean(self, parameters: Tensors, reads: Mapping[str, Tensors]) -> float:
        """``at``, averaged over the parts of the batch."""
        return fmean(self.at(part, parameters, reads).item() for part in range(len(self._lower.losses)))

    def gradient(self, parameters: Tensors, reads: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """The gradient of the mean with respect to ``parameters``, same names and shapes."""
        leaves, parts = detached_leaves(parameters), range(len(self._lower.losses))
        return mean_over_parts(lambda part: gradients(self.at(part, leaves, reads), leaves), parts, leaves)


class _LeavingGraph(TorchFunctionMode):
    """Tracks values that leave a loss's graph while gradients are enabled around it."""

    def __init__(self) -> None:
        super().__init__()
        self._cutting = False
        self._outer: list[bool] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function is F.gumbel_softmax:
            with self:
                return _gumbel_softmax(*arguments, **keywords)
        enabled = torch.is_grad_enabled()
        result = function(*arguments, **keywords)
        has_left = self._leaves(function, arguments, keywords, enabled, result)
        return self._handed_on(function, (arguments, keywords), result, has_left, enabled)

    def _handed_on(self, function: Any, inputs: tuple[Any, Any], result: Any, has_left: bool, enabled: bool) -> Any:
        """The value that the loss gets instead of a function's result.

        Args:
            function: a torch function.
            inputs: its arguments and keywords.
            result: its result.
            has_left: whether the result is outside the graph.
            enabled: whether gradients were enabled before it.
        """
        raise NotImplementedError

    def _leaves(self, function: Any, arguments: Any, keywords: Any, enabled: bool, result: Any) -> bool:
        """Whether a function's result is outside the graph; ``enabled`` says whether gradients were enabled before
        it."""
        if function is torch._C._set_grad_enabled:
            self._follow(enabled, arguments[0])
        if function is torch.autograd.grad:
            return not keeps_graph(arguments, **keywords)
        off = not torch.is_grad_enabled()
        if off and torch.is_inference_mode_enabled():  # torch does not notify function modes of it
            return _holds_tensor(result)
        if off and not self._cutting:  # within an autograd.Function, whose backward pass defines its derivative
            return False
        return function in CUTTING or (off and _holds_tensor(result))

    def _follow(self, before: bool, now: bool) -> None:
        """Distinguish a loss's own ``no_grad`` from disabled gradients inside an ``autograd.Function``."""
        if now and not before:
            self._outer.append(self._cutting)
            self._cutting = False
        elif before and not now:
            self._cutting = self._outer.pop() if self._outer else True


class ReuseDetection(_LeavingGraph):
    """Detects whether values that left the graph re-enter it; values that only form metrics do not.

    Attributes:
        used: whether any re-enters. Numbers count as used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = False
        self._tensors: dict[int, Tensor] = {}

    def _handed_on(self, function: Any, inputs: tuple[Any, Any], result: Any, has_left: bool, enabled: bool) -> Any:
        values = tree_leaves(result)
        if has_left:
            self._follow_on(values)
            self.used |= not all(isinstance(value, Tensor) for value in values)
        elif (enabled or not self._cutting) and not self.used and self._takes(inputs):
            comes_back = any(isinstance(value, Tensor) and value.requires_grad for value in values)
            self.used = comes_back or function in LEAVING_TORCH
            self._follow_on(values)  # still outside the graph
        return result

    def _takes(self, inputs: tuple[Any, Any]) -> bool:
        """Whether a tensor that has left the graph is among the arguments."""
        return bool(self._tensors) and any(id(leaf) in self._tensors for leaf in tree_leaves(inputs))

    def _follow_on(self, values: Sequence[Any]) -> None:
        self._tensors |= {id(value): value for value in values if isinstance(value, Tensor)}


class StopGradients(_LeavingGraph):
    """Records values that leave the graph, or replays recorded values.

    Args:
        recorded: values to replay in order; None records.
        start: index of the first value to replay.

    Attributes:
        values: the recorded tensors and numbers, with their containers.
    """

    def __init__(self, recorded: list[Any] | None = None, start: int = 0) -> None:
        super().__init__()
        self.values: list[Any] = [] if recorded is None else recorded
        self._recording = recorded is None
        self._start = self._position = start
        self._entered = 0

    def __enter__(self) -> Self:
        if not self._entered:  # within its own function, it continues at the same index
            self._position = self._start
        self._entered += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered -= 1
        super().__exit__(*error)

    def again(self) -> StopGradients:
        """A mode for the recomputation of everything from here on, as in checkpointing, which replays the recorded
        values."""
        return StopGradients(self.values, len(self.values) if self._recording else self._position)

    def _handed_on(self, function: Any, inputs: tuple[Any, Any], result: Any, has_left: bool, enabled: bool) -> Any:
        if not has_left:
            return result
        arguments, _ = inputs
        with torch._C.DisableTorchFunction():
            if self._recording:
                self.values.append(_copied(result))
                return result
            if self._position == len(self.values):
                raise ProductError(OTHER_WAY)
            value = self.values[self._position]
            self._position += 1
            if isinstance(result, Tensor) and isinstance(value, Tensor):
                if result.shape == value.shape and torch.equal(result, value):
                    return result  # so that writes to it, as to a parameter's data, reach the original
                if arguments and result is arguments[0]:  # written in place
                    return result.copy_(value)
            return _copied(value)

    def check(self) -> None:
        """Raise ProductError if fewer values were replayed than recorded."""
        if self._position < len(self.values):
            raise ProductError(OTHER_WAY)


REMEDY = "use solver.product=forward or reverse"
OTHER_WAY = f"a loss detaches other values at moved parameters, which finite differences cannot hold: {REMEDY}"


def keeps_graph(arguments: Any, create_graph: Any = False, **_: Any) -> bool:
    """Whether ``torch.autograd.grad`` with these arguments returns differentiable gradients."""
    return bool(arguments[4] if len(arguments) > 4 else create_graph)


def _gumbel_softmax(logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Tensor:
    """``F.gumbel_softmax``, whose ``detach`` is invisible to function modes."""
    noise = -torch.empty_like(logits, memory_format=torch.legacy_contiguous_format).exponential_().log()
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    index = soft.max(dim, keepdim=True)[1]
    one_hot = torch.zeros_like(logits, memory_format=torch.legacy_contiguous_format).scatter_(dim, index, 1.0)
    return one_hot - soft.detach() + soft


def _holds_tensor(result: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))


def _copied(value: Any) -> Any:
    """A detached copy."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), value)
