"""Differentiable stages; a level's recorded update is a chain of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from multilevel.solvers.gradients import pulled
from multilevel.solvers.vectors import Tensors

#: A tensor of an update: ("parameters", name), ("gradient", name), ("state", name, key), ("reads", level, name), or
#: ("hook", ...) for one that hooks keep from one update to the next.
Key = tuple[str, ...]
Keyed = dict[Key, Tensor]


def keyed_by_kind(kind: str, tensors: Tensors) -> Keyed:
    return {(kind, name): tensor for name, tensor in tensors.items()}


def keyed_nested(kind: str, values: Mapping[str, Tensors]) -> Keyed:
    return {(kind, outer, name): tensor for outer, tensors in values.items() for name, tensor in tensors.items()}


def tensors_of_kind(kind: str, values: Mapping[Key, Tensor]) -> dict[str, Tensor]:
    """The tensors of a kind whose keys are (kind, name), by name."""
    return {key[1]: tensor for key, tensor in values.items() if key[0] == kind}


@dataclass(frozen=True)
class Stage:
    """A part of an update with the graph from its inputs to its outputs; other keys pass unchanged.

    Attributes:
        inputs: leaves that require a gradient.
        outputs: computed from the inputs; an output that does not require a gradient depends on none of them.
    """

    inputs: Mapping[Key, Tensor]
    outputs: Mapping[Key, Tensor]

    @classmethod
    def of(cls, function: Callable[[Keyed], Keyed], point: Mapping[Key, Tensor]) -> Stage:
        """Evaluate ``function`` at a point."""
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in point.items()}
        with torch.enable_grad():
            return cls(leaves, function(leaves))

    def values(self, before: Mapping[Key, Tensor]) -> Keyed:
        """The values after the stage."""
        return {**before, **{key: tensor.detach() for key, tensor in self.outputs.items()}}

    def pull(self, cotangents: Mapping[Key, Tensor]) -> Keyed:
        """Map cotangents after the stage to cotangents before it; a missing key has a cotangent of 0."""
        result = {key: cotangent for key, cotangent in cotangents.items() if key not in self.outputs}
        arriving = {key: tensor for key, tensor in self.outputs.items() if key in cotangents}
        for key, cotangent in pulled(arriving, cotangents, self.inputs, keep=True).items():
            if cotangent is not None:
                result[key] = result[key] + cotangent if key in result else cotangent
        return result

    def push(self, tangents: Mapping[Key, Tensor]) -> Keyed:
        """Map tangents before the stage to tangents after it; a missing key has a tangent of 0."""
        result = {key: tangent for key, tangent in tangents.items() if key not in self.outputs}
        cotangents, transposed = self._transposed
        arriving = {key: tensor for key, tensor in transposed.items() if key in tangents}
        pushed = pulled(arriving, tangents, cotangents, keep=True)
        return result | {key: tangent for key, tangent in pushed.items() if tangent is not None}

    @cached_property
    def _transposed(self) -> tuple[Keyed, Keyed]:
        """Zero cotangents and their pullback, which is linear in them, so that its derivative pushes tangents
        forward."""
        outputs = {key: tensor for key, tensor in self.outputs.items() if tensor.requires_grad}
        cotangents = {key: torch.zeros_like(tensor, requires_grad=True) for key, tensor in outputs.items()}
        with torch.enable_grad():
            slopes = pulled(outputs, cotangents, self.inputs, create_graph=True)
        return cotangents, {key: slope for key, slope in slopes.items() if slope is not None and slope.requires_grad}
