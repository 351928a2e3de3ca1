"""Changes to torch's functions during the evaluation of a loss."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from multilevel.problems.errors import LossError
from multilevel.problems.evaluation.normalization import weight_norm
from multilevel.problems.evaluation.randomness import ReplayableDropout
from multilevel.problems.evaluation.substitution import Substitution
from multilevel.solvers.differentiation import wants_higher_derivatives, writes_in_place

_FLAG = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_GRADIENT_FUNCTION = vars(torch._C.TensorBase)["grad_fn"].__get__
#: Functions that show whether a tensor has a graph, or need one.
_ASKING = frozenset(
    {
        _FLAG,
        _GRADIENT_FUNCTION,
        Tensor.is_leaf.__get__,  # type: ignore[attr-defined]
        Tensor.register_hook,
        Tensor.retain_grad,
    }
)
_FLAG_SETTERS = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]


class GradientsWantedError(Exception):
    """A loss asks for a tensor's graph, which exists only if every parameter enters with ``requires_grad``."""


@lru_cache(1024)
def _is_special(function: Any) -> bool:
    """Whether ``LossMode`` handles a function that is called without a generator."""
    names = ("dropout", "attention")
    special = function in _ASKING or function in _FLAG_SETTERS or function is torch._weight_norm
    return special or any(name in getattr(function, "__name__", "") for name in names)


class LossMode(ReplayableDropout):
    """Makes a loss compute the same value in every evaluation, whatever is being differentiated.

    A substitute reports the ``requires_grad`` of the parameter that it replaces. The user's own ``torch.Generator``
    objects start every evaluation from their state at the update. ``weight_norm``, whose second derivative is wrong in
    torch, is computed by elementary operations when second derivatives are taken.

    Args:
        substitution: the substitution of the parameters.
        generators: states by generator; generators are added on their first use.
        watched: the level of a tensor by its ``id``; see ``touched``.
        storages: addresses of storages; see ``written``.
        differentiable: whether every parameter enters as in the update of its level.

    Attributes:
        used: the levels of the watched tensors that functions were called with.
        touched: the same, but only while gradients were enabled.
        uses_replaced: whether a function was called with a parameter itself, which the loss did not get from
            ``levels``.
        written: the storages among ``storages`` that functions wrote to.

    Raises:
        GradientsWantedError: see there; not with ``differentiable``.
    """

    def __init__(
        self,
        substitution: Substitution,
        generators: MutableMapping[torch.Generator, Tensor],
        watched: Mapping[int, str],
        storages: Collection[int] = (),
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        self.nominal, self._replaced = substitution.nominal, substitution.replaced
        self._generators = generators
        self._watched = watched
        self._before: dict[torch.Generator, Tensor] = {}
        self._storages = storages
        self._differentiable = differentiable
        self.written: set[int] = set()
        self.uses_replaced = False
        self.touched: set[str] = set()
        self.used: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        named = arguments[0] if arguments and type(arguments[0]) is list else arguments
        if not self._replaced.isdisjoint(map(id, named)) and torch.is_grad_enabled():
            self.uses_replaced = True
        if not (self._watched or self._storages or "generator" in keywords or _is_special(function)):
            return function(*arguments, **keywords)
        if function == _FLAG and id(arguments[0]) in self.nominal:
            return self.nominal[id(arguments[0])]
        if function in _FLAG_SETTERS and id(arguments[0]) in self.nominal:
            raise LossError("a loss sets requires_grad of a level's parameter: detach what is not to be differentiated")
        if function in _ASKING and not self._differentiable and _lacks_graph(arguments[0]):
            raise GradientsWantedError
        self.watch((*arguments, *keywords.values()))
        if self._storages:
            self._note_writes(function, arguments, keywords)
        generator = keywords.get("generator")
        if isinstance(generator, torch.Generator) and generator is not torch.default_generator:
            self._replay(generator)
        if function is torch._weight_norm and wants_higher_derivatives():
            return weight_norm(*arguments, **keywords)
        return super().__torch_function__(function, types, arguments, keywords)

    def restore_generators(self) -> None:
        """Restore the user's own generators to their state before the evaluation."""
        for generator, state in self._before.items():
            generator.set_state(state)

    def watch(self, values: Iterable[Any]) -> None:
        """Note which watched tensors a function is called with."""
        if not self._watched:
            return
        for value in values:
            if isinstance(value, list | tuple):
                self.watch(value)
            elif id(value) in self._watched:
                self.used.add(self._watched[id(value)])
                if torch.is_grad_enabled():
                    self.touched.add(self._watched[id(value)])

    def _note_writes(self, function: Any, arguments: Any, keywords: Mapping[str, Any]) -> None:
        """Note the storages that a function writes to: its first argument if it works in place, or ``out``."""
        for value in tree_leaves((arguments[:1] if writes_in_place(function) else (), keywords.get("out"))):
            if isinstance(value, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(value):
                address = value.untyped_storage().data_ptr()
                if address in self._storages:
                    self.written.add(address)

    def _replay(self, generator: torch.Generator) -> None:
        """On the first use of a generator in an evaluation, restore the recorded state, or record the current one."""
        if generator in self._before:
            return
        self._before[generator] = generator.get_state()
        if generator in self._generators:
            generator.set_state(self._generators[generator])
        else:
            self._generators[generator] = self._before[generator]


def _lacks_graph(tensor: Tensor) -> bool:
    """Whether a tensor that could have a graph has none, in code that builds graphs."""
    with torch._C.DisableTorchFunction():
        if not torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return False
        return tensor.is_floating_point() and not tensor.requires_grad
