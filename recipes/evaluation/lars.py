"""The optimizer LARS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017), as in the MAE paper's code.

    v <- momentum * v + q * g,  p <- p - lr * v,  with g the gradient plus weight_decay * p and q = trust * |p| / |g|,
    or 1 if either norm is 0. Vectors (biases, norm parameters) are neither scaled nor decayed.

    Args:
        params: tensors or groups.
        lr: learning rate.
        momentum: momentum of v.
        weight_decay: weight decay of matrices.
        trust: the coefficient of q.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is not called."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if parameter.ndim > 1:
                    gradient = gradient + group["weight_decay"] * parameter
                    norms = parameter.norm() * gradient.norm()
                    scale = group["trust"] * parameter.norm() / gradient.norm()
                    gradient = gradient * torch.where(norms > 0, scale, 1.0)
                state = self.state[parameter]
                velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(gradient)
                parameter.sub_(group["lr"] * velocity)
