"""Optimizers' updates as functions that can be differentiated: SGD, Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from multilevel.solvers.vectors import Tensors

State = dict[str, dict[str, Tensor]]
KINDS: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adamw",
}
STATE = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq")}


@dataclass(frozen=True)
class UpdateRule:
    """One update of a torch optimizer at a point of its training, as a pure function.

    Attributes:
        kind: sgd (momentum, dampening, Nesterov, weight decay), adam or adamw.
        settings: of each parameter's group: lr, betas, weight_decay, ...; a parameter without any stands still.
        state: of each parameter, tensors of its shape; empty before its first update.
        counts: updates that each parameter has had.
        clip_norm: largest norm of the whole gradient; None leaves it.
    """

    kind: str
    settings: Mapping[str, Mapping[str, Any]]
    state: State
    counts: Mapping[str, int]
    clip_norm: float | None = None

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer | None, variables: Mapping[str, Tensor], clip_norm: float | None = None
    ) -> UpdateRule | None:
        """The next update of an optimizer over ``variables``; None where it is of another kind or variant."""
        kind = KINDS.get(type(optimizer))  # type: ignore[arg-type]
        if optimizer is None or kind is None:
            return None
        groups = {id(one): group for group in optimizer.param_groups for one in group["params"]}
        settings = {name: groups[id(variable)] for name, variable in variables.items()}
        if any(group.get("amsgrad") or group.get("maximize") for group in settings.values()):
            return None
        state: State = {}
        counts = {}
        for name, variable in variables.items():
            held = optimizer.state.get(variable, {})
            state[name] = {key: held[key] for key in STATE[kind] if isinstance(held.get(key), Tensor)}
            counts[name] = int(held.get("step", 1 if state[name] else 0))
        copied = {
            name: {key: value for key, value in group.items() if key != "params"} for name, group in settings.items()
        }
        return cls(kind, copied, state, counts, clip_norm)

    def recorded(self, moving: set[str]) -> UpdateRule:
        """The update of the parameters ``moving`` alone, with a state that the optimizer does not write to."""
        state = {name: {key: value.clone() for key, value in held.items()} for name, held in self.state.items()}
        settings = {name: group for name, group in self.settings.items() if name in moving}
        return replace(self, state=state, settings=settings)

    def apply(self, parameters: Tensors, gradients: Tensors, state: State) -> tuple[dict[str, Tensor], State]:
        """Parameters and state after the update, differentiable in all three arguments (same names and shapes)."""
        if self.clip_norm is not None:
            length = torch.cat([one.reshape(-1) for one in gradients.values()]).norm()
            factor = torch.clamp(self.clip_norm / (length + 1e-6), max=1.0)
            gradients = {name: factor * one for name, one in gradients.items()}
        update = _sgd if self.kind == "sgd" else _adam
        results: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        for name, parameter in parameters.items():
            group = self.settings.get(name)
            if group is None:
                results[name] = (parameter, {})
            else:
                results[name] = update(parameter, gradients[name], state[name], group, self.counts[name], self.kind)
        return {name: one for name, (one, _) in results.items()}, {name: held for name, (_, held) in results.items()}


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
    parameter: Tensor,
    gradient: Tensor,
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    count: int,
    kind: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    rate, (first, second), decay = settings["lr"], settings["betas"], settings["weight_decay"]
    if kind == "adamw" or settings.get("decoupled_weight_decay"):
        parameter = parameter * (1 - rate * decay)
    else:
        gradient = gradient + decay * parameter
    zero = torch.zeros_like(parameter)
    mean = first * state.get("exp_avg", zero) + (1 - first) * gradient
    square = second * state.get("exp_avg_sq", zero) + (1 - second) * gradient.square()
    # The root has an infinite slope at 0, where a gradient has always been 0 and moves nothing.
    seen = square > 0
    root = torch.where(seen, square, 1.0).sqrt() * seen / (1 - second ** (count + 1)) ** 0.5
    step = mean / (1 - first ** (count + 1)) / (root + settings["eps"])
    return parameter - rate * step, {"exp_avg": mean, "exp_avg_sq": square}
