"""The nodes and leaves of a loss's autograd graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def nodes(loss: Tensor) -> Iterator[Any]:
    """The nodes of a loss's graph, without duplicates.

    >>> import torch
    >>> weight = torch.ones(2, requires_grad=True)
    >>> [type(node).__name__ for node in nodes((2 * weight).sum())]
    ['SumBackward0', 'MulBackward0', 'AccumulateGrad']
    """
    visited: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in visited:
            visited.add(node)
            yield node
            waiting.extend(function for function, _ in node.next_functions)


def leaves(loss: Tensor) -> Iterator[Tensor]:
    """The leaf tensors that a loss's gradient would reach.

    >>> import torch
    >>> weight = torch.ones(2, requires_grad=True)
    >>> [leaf is weight for leaf in leaves((2 * weight).sum())]
    [True]
    """
    if loss.grad_fn is None and loss.requires_grad:
        yield loss
    for node in nodes(loss):
        if hasattr(node, "variable"):
            yield node.variable
