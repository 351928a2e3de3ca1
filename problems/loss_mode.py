"""What the engine changes about torch's functions while a loss is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from multilevel.problems.errors import LossError
from multilevel.problems.normalization import weight_norm
from multilevel.problems.randomness import ReplayableDropout
from multilevel.solvers.differentiation import wants_higher_derivatives

_FLAG = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_FLAG_SETTERS = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]


class LossMode(ReplayableDropout):
    """Has a loss compute the same value in every evaluation, whatever is being differentiated.

    ``requires_grad`` of a substitute is that of the parameter in whose place it is. A ``torch.Generator`` of the
    user's own starts every evaluation from the state that it had at the update. ``weight_norm``, whose second
    derivative is wrong in torch, is computed by elementary operations where second derivatives are taken.

    Args:
        nominal: ``requires_grad`` by the ``id`` of each substitute.
        generators: states by generator; those met for the first time are added.
        watched: the level of a tensor by its ``id``; see ``touched``.

    Attributes:
        seen: the levels of the watched tensors that a function has been called with.
        touched: those of them while gradients were enabled.
    """

    def __init__(
        self,
        nominal: Mapping[int, bool],
        generators: MutableMapping[torch.Generator, Tensor],
        watched: Mapping[int, str],
    ) -> None:
        super().__init__()
        self.nominal = nominal
        self._generators = generators
        self._watched = watched
        self._before: dict[torch.Generator, Tensor] = {}
        self.touched: set[str] = set()
        self.seen: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function == _FLAG and id(arguments[0]) in self.nominal:
            return self.nominal[id(arguments[0])]
        if function in _FLAG_SETTERS and id(arguments[0]) in self.nominal:
            raise LossError("a loss sets requires_grad of a level's parameter: detach what is not to be differentiated")
        self.watch((*arguments, *keywords.values()))
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
                self.seen.add(self._watched[id(value)])
                if torch.is_grad_enabled():
                    self.touched.add(self._watched[id(value)])

    def _replay(self, generator: torch.Generator) -> None:
        """At the first use in an evaluation: go to the recorded state, or record this one."""
        if generator in self._before:
            return
        self._before[generator] = generator.get_state()
        if generator in self._generators:
            generator.set_state(self._generators[generator])
        else:
            self._generators[generator] = self._before[generator]
