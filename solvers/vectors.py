"""A level's parameters as one vector and back, so that solvers read like the textbook."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def flatten(tensors: Tensors) -> Tensor:
    """Concatenate named tensors into one vector of shape [N], in the mapping's order."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


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


def zeros_like(tensors: Tensors) -> dict[str, Tensor]:
    """A zero for every tensor, same names and shapes."""
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def norm(tensors: Tensors) -> float:
    """Euclidean norm of all tensors together."""
    return torch.stack([tensor.norm() for tensor in tensors.values()]).norm().item()
