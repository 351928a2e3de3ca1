"""Substitutes tensors for the parameters and buffers of all levels' modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multilevel.problems.batches import versions
from multilevel.solvers.vectors import Tensors


@dataclass(frozen=True, eq=False)
class Variable:
    """A parameter or buffer, and every place that holds it, (dictionary of a module, key); several if it is tied."""

    level: str
    name: str
    is_parameter: bool
    places: list[tuple[dict[str, Tensor | None], str]]

    @property
    def current(self) -> Tensor | None:
        holder, key = self.places[0]
        return holder.get(key)  # forward passes may remove a buffer

    def put(self, value: Tensor | None) -> None:
        for holder, key in self.places:
            holder[key] = value


class Modules:
    """All levels' modules as one.

    ``torch.func.functional_call`` on a container module would work too, but looks up names and ties in every call, and
    loses reassigned buffers.

    Args:
        modules: the module of each level. Names, ties and buffers are determined once.

    Attributes:
        modules: every module and submodule, without duplicates.
        rnns: modules that keep a separate list of their weights.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._variables: list[Variable] = []
        self._sizes: list[tuple[nn.Module, int]] = []
        self.modules = list(dict.fromkeys(part for module in modules.values() for part in module.modules()))
        self.rnns = [part for part in self.modules if isinstance(part, nn.RNNBase)]
        known: dict[int, Variable] = {}
        for level, module in modules.items():
            for prefix, part in module.named_modules():
                self._sizes.append((part, _size(part)))
                for holder in (part._parameters, part._buffers):
                    for key, tensor in holder.items():
                        if tensor is not None and id(tensor) in known:
                            known[id(tensor)].places.append((holder, key))
                        elif tensor is not None or holder is part._buffers:
                            name = f"{prefix}.{key}" if prefix else key
                            variable = Variable(level, name, holder is part._parameters, [(holder, key)])
                            self._variables.append(variable)
                            if tensor is not None:
                                known[id(tensor)] = variable

    def raw(self) -> dict[int, tuple[str, str]]:
        """The level and name of each of the modules' own parameters, by its ``id``."""
        return {
            id(variable.current): (variable.level, variable.name)
            for variable in self._variables
            if variable.is_parameter
        }

    def substitution(
        self,
        values: Mapping[str, Tensors],
        cast: Callable[[Tensor], Tensor] | None = None,
        differentiable: bool = False,
        moving: Mapping[str, Collection[str]] | None = None,
    ) -> Substitution:
        """Substitute ``values``, ``{level: {name: tensor}}``, and copies where there is no value.

        Args:
            values: new values for parameters and buffers; other parameters enter detached, other buffers as copies.
            cast: applied to all substitutes; None leaves them unchanged.
            differentiable: whether a loss itself can differentiate with respect to every parameter that requires a
                gradient.
            moving: for each level, the parameters that its forward pass writes to, which enter as copies; None: all.
        """
        pairs: list[tuple[Variable, Tensor | None]] = []
        nominal: dict[int, bool] = {}
        replaced: set[int] = set()
        for variable in self._variables:
            holder, key = variable.places[0]
            current, tensors = holder.get(key), values.get(variable.level)
            value = None if tensors is None else tensors.get(variable.name)
            if value is None and current is not None:
                stands = variable.is_parameter and moving is not None and variable.name not in moving[variable.level]
                value = current.detach() if stands else current.detach().clone()
                value = value if cast is None else cast(value)
            if variable.is_parameter and value is not None and current is not None:
                if differentiable and current.requires_grad and not value.requires_grad:
                    value = value.view_as(value).requires_grad_()
                value._is_param = True  # isinstance(value, nn.Parameter), as modules may ask
                nominal[id(value)] = current.requires_grad
                replaced.add(id(current))
            pairs.append((variable, value))
        return Substitution(pairs, nominal, replaced, self.rnns, self._sizes)


def marked(leaf: Tensor) -> Tensor:
    """Mark a tensor to differentiate with respect to, to detect losses that keep it for their next evaluation."""
    leaf.is_substitute = id(leaf)  # type: ignore[attr-defined]  # a copy of it has this attribute, and another id
    return leaf


def is_marked(leaf: Tensor) -> bool:
    return getattr(leaf, "is_substitute", None) == id(leaf)


class Substitution:
    """A reusable block in which the modules hold the substitutes; after it, they hold the original tensors again.

    Attributes:
        nominal: whether the replaced parameter requires a gradient, by the substitute's ``id``.
        replaced: the ``id`` of each replaced parameter.
        added: names of buffers and parameters registered in the block, which are removed again.
    """

    def __init__(
        self,
        pairs: list[tuple[Variable, Tensor | None]],
        nominal: dict[int, bool],
        replaced: set[int],
        rnns: list[nn.RNNBase],
        sizes: list[tuple[nn.Module, int]],
    ) -> None:
        self._pairs = pairs
        self._sizes = sizes
        self.added: list[str] = []
        self.nominal = nominal
        self.replaced = replaced
        self._rnns = rnns
        self._before: list[list[Tensor | None]] = []
        #: The contents at the end of the block, since a forward pass may have reassigned buffers.
        self._after: list[tuple[Variable, Tensor | None]] = []
        #: The substitutes of parameters, and where each is in ``pairs``.
        self._parameters: list[Tensor] = []
        self._indices: list[int] = []
        for index, (variable, value) in enumerate(pairs):
            if variable.is_parameter and value is not None:
                self._parameters.append(value)
                self._indices.append(index)
        #: How often each parameter had been written to at the start of the block.
        self._versions: list[int] = []

    def __enter__(self) -> Substitution:
        with torch._C.DisableTorchFunction():
            self._versions = versions(self._parameters)
        before: list[Tensor | None] = []
        for variable, value in self._pairs:
            holder, key = variable.places[0]
            before.append(holder.get(key))
            for holder, key in variable.places:
                holder[key] = value
        self._before.append(before)
        return self

    def __exit__(self, *error: object) -> None:
        self._after = []
        for (variable, _), value in zip(self._pairs, self._before.pop(), strict=True):
            holder, key = variable.places[0]
            self._after.append((variable, holder.get(key)))
            for holder, key in variable.places:
                holder[key] = value
        for module, size in self._sizes:
            if len(module._parameters) + len(module._buffers) > size:
                self._take_out(module)
        for rnn in self._rnns:
            rnn._flat_weights = [getattr(rnn, name, None) for name in rnn._flat_weights_names]

    def substitutes(self, level: str) -> list[Tensor]:
        """The substitutes of a level's parameters."""
        return [
            value
            for variable, value in self._pairs
            if variable.is_parameter and variable.level == level and value is not None
        ]

    def moved(self, level: str, moving: Collection[str] = ()) -> list[tuple[Variable, Tensor | None]]:
        """A level's buffers and ``moving`` parameters, with their contents at the end of the block."""
        return [
            (variable, value)
            for variable, value in self._after
            if variable.level == level and (not variable.is_parameter or variable.name in moving)
        ]

    def storages(self) -> dict[int, Variable]:
        """The parameters, by the storage address of their substitutes."""
        return {
            value.untyped_storage().data_ptr(): variable
            for variable, value in self._pairs
            if variable.is_parameter and value is not None
        }

    def written(self) -> list[Variable]:
        """The parameters that the block wrote to or reassigned, except for writes through ``data``, which torch does
        not count."""
        return [
            self._pairs[index][0]
            for index, value, version in zip(self._indices, self._parameters, self._versions, strict=True)
            if self._after[index][1] is not value or (not value.is_inference() and version != value._version)
        ]

    def differing(self) -> list[Variable]:
        """The parameters with changed values after the block; they must have entered as copies."""
        return [
            variable
            for variable, value in self._after
            if variable.is_parameter
            and variable.current is not None
            and value is not None
            and not _same(value, variable.current)
        ]

    def _take_out(self, module: nn.Module) -> None:
        known = {(id(holder), key) for variable, _ in self._pairs for holder, key in variable.places}
        for holder in (module._parameters, module._buffers):
            for key in [key for key, tensor in holder.items() if tensor is not None and (id(holder), key) not in known]:
                del holder[key]
                self.added.append(key)


def _size(module: nn.Module) -> int:
    """The number of parameters and buffers that a module itself has registered."""
    return len(module._parameters) + len(module._buffers)


def _same(value: Tensor, current: Tensor) -> bool:
    return value.shape == current.shape and torch.equal(value.detach().to(current.dtype), current)
