"""Converts a level's parameters to one vector and back, so that solvers read like the textbook."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def flatten(tensors: Tensors) -> Tensor:
    """Concatenate named tensors into one vector of shape [N], in the mapping's order; half precision becomes float32.

    Sums over N terms need the precision, and torch has no linear algebra in half precision.
    """
    vector = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    return vector.float() if vector.dtype in (torch.float16, torch.bfloat16) else vector


def unflatten(vector: Tensor, like: Tensors) -> dict[str, Tensor]:
    """Cut a vector of shape [N] into views with the names, shapes and dtypes of ``like`` (N elements in all)."""
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {
        name: piece.view(tensor.shape).to(tensor.dtype)
        for (name, tensor), piece in zip(like.items(), pieces, strict=True)
    }


def shifted(tensors: Tensors, direction: Tensors, scale: float) -> dict[str, Tensor]:
    """``tensors + scale * direction``, name by name, as new tensors."""
    return {name: torch.add(tensor, direction[name], alpha=scale) for name, tensor in tensors.items()}


def scaled(tensors: Tensors, factor: float) -> dict[str, Tensor]:
    """``factor * tensors``, name by name; the same tensors if the factor is 1."""
    return dict(tensors) if factor == 1 else {name: tensor * factor for name, tensor in tensors.items()}


def magnitude(tensors: Tensors) -> float:
    """The power of two at or below the largest absolute value; 0 if all are 0, inf or nan if any value is.

    Multiplying by it or its inverse is exact: it is clamped to what the narrowest dtype can represent.
    """
    nonempty = [tensor for tensor in tensors.values() if tensor.numel()]
    if not nonempty:
        return 0.0
    largest = torch.stack([torch.linalg.vector_norm(tensor, torch.inf).double() for tensor in nonempty]).amax().item()
    if largest == 0 or not math.isfinite(largest):
        return largest
    limit = min(-math.frexp(torch.finfo(tensor.dtype).tiny)[1] + 1 for tensor in nonempty)
    exponent = math.frexp(largest)[1] - 1
    return math.ldexp(1.0, max(-limit, min(exponent, limit)))


def scalar_values(tensors: Sequence[Tensor]) -> list[Any]:
    """The values of one-element tensors, with one device synchronization per dtype.

    >>> scalar_values([torch.tensor(0.5), torch.tensor([2]), torch.tensor(1.5)])
    [0.5, 2, 1.5]
    """
    if len(tensors) == 1:
        return [tensors[0].item()]
    alike: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        alike.setdefault((tensor.dtype, tensor.device), []).append(index)
    values: list[Any] = [None] * len(tensors)
    for indices in alike.values():
        row = torch.stack([tensors[index].detach().reshape(()) for index in indices]).tolist()
        for index, value in zip(indices, row, strict=True):
            values[index] = value
    return values


def zeros_like(tensors: Tensors) -> dict[str, Tensor]:
    """Zeros with the same names and shapes."""
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def norm(tensors: Tensors) -> float:
    """The Euclidean norm of all tensors together."""
    return total_norm(list(tensors.values())).item()


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, a scalar on the device of the first; 0 for none."""
    if not tensors:
        return torch.tensor(0.0)
    norms = torch._foreach_norm(tensors)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
