"""Calls that an update has made on levels that it reads, for the product that follows it at the same point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multilevel.problems.randomness import RandomState

Place = tuple[int, torch.Size, int]


@dataclass(frozen=True, eq=False)
class CarriedCall:
    """One call, with the graph of its result.

    Attributes:
        target: module, method, and how it was called.
        arguments: the tensors, and what else it was given.
        parameters: those that were substituted for the module's.
        result: depends on ``parameters``.
        before: the generators' state at its start.
        after: and at its end.
        places: where the parameters were, and how often they had been written to.
    """

    target: tuple[Any, ...]
    arguments: Any
    parameters: Sequence[Tensor]
    result: Tensor
    before: RandomState
    after: RandomState
    places: Sequence[Place] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", _places(self.parameters))

    def is_at(self, parameters: Sequence[Tensor]) -> bool:
        """Whether ``parameters`` are the same memory, which has not been written to since."""
        return _places(parameters) == self.places

    def again(self, parameters: Sequence[Tensor]) -> Tensor:
        """The result as a function of ``parameters``, which has a first derivative, once."""
        return _Carried.apply(self, *parameters)


class _Carried(torch.autograd.Function):
    """A result that has been computed; its gradient goes back through the graph that is kept."""

    @staticmethod
    def forward(context: Any, call: CarriedCall, *parameters: Tensor) -> Tensor:
        context.call = call
        return call.result.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        call = context.call
        return None, *torch.autograd.grad(call.result, list(call.parameters), cotangent, allow_unused=True)


def _places(tensors: Sequence[Tensor]) -> list[Place]:
    return [(one.data_ptr(), one.shape, one._version) for one in tensors]
