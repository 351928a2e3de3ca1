"""Changes to torch's functions while a loss is evaluated."""

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
#: Functions that tell whether a tensor has a graph, or need one.
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
    """A loss asks a tensor for its graph, which it would have if every parameter entered with ``requires_grad``."""


@lru_cache(1024)
def _is_special(function: Any) -> bool:
    """Whether ``LossMode`` has anything to do with a function that is given no generator."""
    names = ("dropout", "attention")
    special = function in _ASKING or function in _FLAG_SETTERS or function is torch._weight_norm
    return special or any(name in getattr(function, "__name__", "") for name in names)


class LossMode(ReplayableDropout):
    """Has a loss compute the same value in every evaluation, whatever is being differentiated.

    ``requires_grad`` of a substitute is that of the parameter in whose place it is. A ``torch.Generator`` of the
    user's own starts every evaluation from the state that it had at the update. ``weight_norm``, whose second
    derivative is wrong in torch, is computed by elementary operations where second derivatives are taken.

    Args:
        substitution: of the parameters.
        generators: states by generator; those met for the first time are added.
        watched: the level of a tensor by its ``id``; see ``touched``.
        storages: addresses of storages; see ``written``.
        differentiable: every parameter enters as in the update of its level.

    Attributes:
        used: the levels of the watched tensors that a function has been called with.
        touched: those of them while gradients were enabled.
        uses_replaced: whether a function has been called with a parameter itself, which the loss has from elsewhere.
        written: the storages among ``storages`` that functions have written to.

    Raises:
        GradientsWantedError: in the loss, see there; not with ``differentiable``.
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
        """Put the user's own generators back where the evaluation found them."""
        for generator, state in self._before.items():
            generator.set_state(state)

    def watch(self, values: Iterable[Any]) -> None:
        """Tell which watched tensors are among what a function is called with."""
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
        """Note the storages that a function writes to: of its first argument, in place, or of ``out``."""
        for value in tree_leaves((arguments[:1] if writes_in_place(function) else (), keywords.get("out"))):
            if isinstance(value, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(value):
                address = value.untyped_storage().data_ptr()
                if address in self._storages:
                    self.written.add(address)

    def _replay(self, generator: torch.Generator) -> None:
        """At the first use in an evaluation: go to the recorded state, or record this one."""
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
