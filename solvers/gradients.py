"""Computes gradients in named tensors, and sums and averages them over the parts of a batch.

None is the gradient in a tensor that nothing depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from multilevel.solvers.vectors import Tensors

Key = TypeVar("Key")
Out = TypeVar("Out")
Part = TypeVar("Part")
Value = TypeVar("Value")


def gradients(value: Tensor, leaves: Mapping[Key, Tensor]) -> dict[Key, Tensor | None]:
    """The derivative of a scalar in each of ``leaves``.

    >>> leaves = detached_leaves({"used": torch.tensor(3.0), "unused": torch.tensor(1.0)})
    >>> gradients(leaves["used"] ** 2, leaves)
    {'used': tensor(6.), 'unused': None}
    """
    if not value.requires_grad or not leaves:
        return dict.fromkeys(leaves)
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True))


def added(total: Mapping[Key, Tensor | None], term: Mapping[Key, Tensor | None]) -> dict[Key, Tensor | None]:
    """The sum of two gradients, whose names may differ."""
    result = dict(total)
    for key, value in term.items():
        before = result.get(key)
        result[key] = value if before is None else before if value is None else before + value
    return result


def less(first: Mapping[Key, Tensor | None], second: Mapping[Key, Tensor | None]) -> dict[Key, Tensor | None]:
    """The first gradient minus the second, with the same names."""
    pairs = ((key, value, second[key]) for key, value in first.items())
    return {key: plus if minus is None else -minus if plus is None else plus - minus for key, plus, minus in pairs}


def filled(values: Mapping[Key, Tensor | None], like: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Replace None with zeros shaped as in ``like``."""
    return {key: torch.zeros_like(like[key]) if value is None else value for key, value in values.items()}


def sum_over_parts(
    term_of: Callable[[Part], Mapping[Key, Tensor | None]], parts: Iterable[Part], leaves: Mapping[Key, Tensor]
) -> dict[Key, Tensor]:
    """The sum of gradients with respect to ``leaves`` over the parts of a batch; a part without a term counts as 0."""
    total: dict[Key, Tensor | None] = dict.fromkeys(leaves)
    for part in parts:
        total = added(total, term_of(part))
    return filled(total, leaves)


def mean_over_parts(
    term_of: Callable[[Part], Mapping[Key, Tensor | None]], parts: Sequence[Part], leaves: Mapping[Key, Tensor]
) -> dict[Key, Tensor]:
    """The mean of gradients with respect to ``leaves`` over the parts of a batch; a part without a term counts as 0."""
    total = sum_over_parts(term_of, parts, leaves)
    return total if len(parts) == 1 else {key: value / len(parts) for key, value in total.items()}


def pulled(
    outputs: Mapping[Out, Tensor],
    vectors: Mapping[Out, Tensor],
    leaves: Mapping[Key, Tensor],
    keep: bool = False,
    create_graph: bool = False,
) -> dict[Key, Tensor | None]:
    """``J^T v``: the derivative of <outputs, vectors> with respect to ``leaves``; with ``keep`` the graph can be used
    again, with ``create_graph`` the result can be differentiated."""
    pairs = [(output, vectors[key]) for key, output in outputs.items() if output.requires_grad]
    if not pairs or not leaves:
        return dict.fromkeys(leaves)
    values, along = zip(*pairs, strict=True)
    slopes = torch.autograd.grad(values, list(leaves.values()), along, keep or None, create_graph, allow_unused=True)
    return dict(zip(leaves, slopes, strict=True))


def detached_leaves(tensors: Tensors) -> dict[str, Tensor]:
    """Detached tensors that require a gradient."""
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def keyed(values: Mapping[str, Mapping[str, Value]]) -> dict[tuple[str, str], Value]:
    """Flatten nested mappings to one, keyed by (level, name)."""
    return {(level, name): value for level, named in values.items() for name, value in named.items()}


def grouped(
    values: Mapping[tuple[str, str], Value], like: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, Value]]:
    """Invert ``keyed``, with the levels and names of ``like``."""
    return {level: {name: values[level, name] for name in named} for level, named in like.items()}
