"""The updates of SGD, Adam and AdamW as differentiable functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor

from multilevel.solvers.vectors import Tensors, scalar_values

State = dict[str, dict[str, Tensor]]
KINDS: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adamw",
}
ADAM_STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
STATE = {"sgd": ("momentum_buffer",), "adam": ADAM_STATE, "adamw": ADAM_STATE}


@dataclass(frozen=True)
class UpdateRule:
    """One update of a torch optimizer at the current point, as a pure function.

    Attributes:
        kind: sgd (momentum, dampening, Nesterov, weight decay), adam or adamw (amsgrad, decoupled weight decay).
        settings: the settings of each parameter's group: lr, betas, weight_decay, ...; a parameter without settings
            does not change. With maximize=True, gradients are those of the negated loss.
        state: for each parameter, tensors of its shape; empty before the first update.
        steps: number of updates of each parameter, in the optimizer's format.
        clip_norm: largest norm of the whole gradient; None does not clip.
    """

    kind: str
    settings: Mapping[str, Mapping[str, Any]]
    state: State
    steps: Mapping[str, int | Tensor]
    clip_norm: float | None = None

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer | None, variables: Mapping[str, Tensor], clip_norm: float | None = None
    ) -> UpdateRule | None:
        """The next update of an optimizer over ``variables``; None for other kinds or variants of optimizers."""
        if not known(optimizer):
            return None
        assert optimizer is not None
        kind = KINDS[type(optimizer)]
        groups = {id(variable): group for group in optimizer.param_groups for variable in group["params"]}
        settings = {
            name: {key: value for key, value in groups[id(variable)].items() if key != "params"}
            for name, variable in variables.items()
        }
        state: State = {}
        steps = {}
        for name, variable in variables.items():
            slots = optimizer.state.get(variable, {})
            state[name] = {key: slots[key] for key in STATE[kind] if isinstance(slots.get(key), Tensor)}
            steps[name] = slots.get("step", 1 if state[name] else 0)
        return cls(kind, settings, state, steps, clip_norm)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of updates of each parameter."""
        tensors = {name: step for name, step in self.steps.items() if isinstance(step, Tensor)}
        read = dict(zip(tensors, scalar_values(list(tensors.values())), strict=True))
        return {name: int(read.get(name, step)) for name, step in self.steps.items()}

    def recorded(self, moving: set[str]) -> UpdateRule:
        """The update of only the parameters ``moving``, with a copy of the state that the optimizer does not write
        to."""
        state = {name: {key: value.clone() for key, value in slots.items()} for name, slots in self.state.items()}
        # A scheduler changes a tensor's learning rate in place.
        settings = {
            name: {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in group.items()}
            for name, group in self.settings.items()
            if name in moving
        }
        return replace(self, state=state, settings=settings, steps=self.counts)

    def clipped(self, gradients: Tensors) -> dict[str, Tensor]:
        """Scale longer gradients to ``clip_norm``, like ``clip_grad_norm_``."""
        if self.clip_norm is None:
            return dict(gradients)
        length = torch.cat([gradient.reshape(-1) for gradient in gradients.values()]).norm()
        factor = torch.clamp(self.clip_norm / (length + 1e-6), max=1.0)
        return {name: factor * gradient for name, gradient in gradients.items()}

    def update(self, parameters: Tensors, gradients: Tensors, state: State) -> tuple[dict[str, Tensor], State]:
        """Parameters and state after the optimizer's step along ``gradients``, which may have been clipped or changed.

        Differentiable in all three arguments (same names and shapes).
        """
        rule = _sgd if self.kind == "sgd" else _adam
        updated: dict[str, Tensor] = {}
        updated_state: State = {}
        for name, parameter in parameters.items():
            group = self.settings.get(name)
            updated[name], updated_state[name] = parameter, {}
            if group is not None:
                updated[name], updated_state[name] = rule(
                    parameter, gradients[name], state[name], group, self.counts[name], self.kind
                )
        return updated, updated_state

    def apply(self, parameters: Tensors, gradients: Tensors, state: State) -> tuple[dict[str, Tensor], State]:
        """``update`` along the clipped gradients."""
        return self.update(parameters, self.clipped(gradients), state)


def known(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether an optimizer has an ``UpdateRule``: only the exact types in ``KINDS``, since a subclass or a replaced
    ``step`` may do anything. A scheduler's wrapper around ``step`` is harmless."""
    if optimizer is None or type(optimizer) not in KINDS:
        return False
    step, plain = getattr(optimizer.step, "__func__", optimizer.step), type(optimizer).step
    return step is plain or unwrap(step) is unwrap(plain)


def maximizes(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether an optimizer ascends its level's loss: every parameter group has maximize=True."""
    return optimizer is not None and all(group.get("maximize") for group in optimizer.param_groups)


def _sgd(
    parameter: Tensor, gradient: Tensor, state: Mapping[str, Tensor], settings: Mapping[str, Any], *_: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    momentum = settings["momentum"]
    gradient = gradient + settings["weight_decay"] * parameter
    if not momentum:
        return parameter - settings["lr"] * gradient, {}
    before = state.get("momentum_buffer")
    buffer = gradient if before is None else momentum * before + (1 - settings["dampening"]) * gradient
    step = gradient + momentum * buffer if settings["nesterov"] else buffer
    return parameter - settings["lr"] * step, {"momentum_buffer": buffer}


def _adam(
    parameter: Tensor, gradient: Tensor, state: Mapping[str, Tensor], settings: Mapping[str, Any], count: int, kind: str
) -> tuple[Tensor, dict[str, Tensor]]:
    rate, (first, second), decay = settings["lr"], settings["betas"], settings["weight_decay"]
    if kind == "adamw" or settings.get("decoupled_weight_decay"):
        parameter = parameter * (1 - rate * decay)
    else:
        gradient = gradient + decay * parameter
    zero = torch.zeros_like(parameter)
    mean = first * state.get("exp_avg", zero) + (1 - first) * gradient
    square = second * state.get("exp_avg_sq", zero) + (1 - second) * gradient.square()
    updated_state = {"exp_avg": mean, "exp_avg_sq": square}
    largest = square
    if settings.get("amsgrad"):
        largest = torch.maximum(state["max_exp_avg_sq"], square) if "max_exp_avg_sq" in state else square
        updated_state["max_exp_avg_sq"] = largest
    # Only here the rule differs from torch.optim, in its derivative: the root's slope is infinite at 0, where a
    # gradient has always been 0; it counts as 0 there, as what autograd makes of the infinite one is nan.
    positive = largest > 0
    root = torch.where(positive, largest, 1.0).sqrt() * positive / (1 - second ** (count + 1)) ** 0.5
    step = mean / (1 - first ** (count + 1)) / (root + settings["eps"])
    return parameter - rate * step, updated_state
