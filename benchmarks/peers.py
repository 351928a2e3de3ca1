"""Hypergradient algorithms of other libraries, on one lower level; each is available if its library is installed.

pip install --no-deps --ignore-requires-python betty-ml==0.2.1
pip install --no-deps torchopt graphviz

With ``--target FOLDER`` they stay outside the environment, and PYTHONPATH=FOLDER makes them importable.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

#: A peer: (loss of two vectors, parameters, upper vector, cotangent, budget, step size) to its contribution.
Peer = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor, Tensor, int, float], Tensor]

BETTY_COMMAND = "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"


def available() -> tuple[dict[str, tuple[str, Peer]], list[str]]:
    """``{name: (kind of solver, peer)}``, and a line on each library that is not there."""
    peers: dict[str, tuple[str, Peer]] = {
        "hypertorch CG": ("conjugate_gradient", hypertorch_cg),
        "hypertorch fixed_point": ("neumann", hypertorch_fixed_point),
    }
    absent = []
    try:
        from betty.hypergradient.cg import cg
        from betty.hypergradient.darts import darts
        from betty.hypergradient.neumann import neumann

        kinds = {
            "darts": ("finite_difference", darts, lambda budget, step: {"darts_alpha": 0.01}),
            "neumann": ("neumann", neumann, lambda budget, step: {"neumann_iterations": budget, "neumann_alpha": step}),
            "cg": ("conjugate_gradient", cg, lambda budget, step: {"cg_iterations": budget, "cg_alpha": 1.0}),
        }
        peers |= {f"betty {name}": (kind, betty(one, options)) for name, (kind, one, options) in kinds.items()}
    except ImportError as error:
        absent.append(f"betty-ml is not installed ({error}): {BETTY_COMMAND}")
    try:
        from torchopt.linear_solve import solve_cg, solve_inv, solve_normal_cg

        # The normal equations take two products an iteration.
        solvers = {
            "solve_cg": ("conjugate_gradient", solve_cg, lambda budget: {"maxiter": budget, "rtol": 0.0}),
            "solve_normal_cg": (
                "conjugate_gradient",
                solve_normal_cg,
                lambda budget: {"maxiter": max(1, budget // 2), "rtol": 0.0},
            ),
            "solve_inv": ("dense", solve_inv, lambda budget: {"ns": False}),
        }
        peers |= {f"torchopt {name}": (kind, torchopt(one, options)) for name, (kind, one, options) in solvers.items()}
    except ImportError as error:
        absent.append(f"torchopt is not installed ({error}): pip install --no-deps torchopt graphviz")
    return peers, absent


def betty(function: Callable, options: Callable[[int, float], dict]) -> Peer:
    """One of Betty's functions, called as its engine calls it, with stand-ins for two problems."""

    def contribution(loss, p, upper, cotangent, budget, step):
        own, read = p.clone().requires_grad_(), upper.clone().requires_grad_()
        lower = SimpleNamespace(
            paths=[],
            config=SimpleNamespace(darts_multitask=False, **options(budget, step)),
            cur_batch=None,
            _strategy="default",
            training_step_exec=lambda batch: loss(own, read),
            trainable_parameters=lambda: [own],
            meta_trainable_parameters=lambda: [own],
            parameters=lambda: [own],
        )
        above = SimpleNamespace(trainable_parameters=lambda: [read])
        return function([cotangent.clone()], lower, above, False)[0]

    return contribution


def torchopt(solver: Callable, options: Callable[[int], dict]) -> Peer:
    """One of torchopt's linear solvers between exact products, as its implicit differentiation does it."""

    def contribution(loss, p, upper, cotangent, budget, step):
        def product(v):  # by function transforms, as it differentiates the product itself
            return torch.func.jvp(lambda q: torch.func.grad(loss)(q, upper), (p,), (v,))[1]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            x = solver(**options(budget))(product, cotangent)
        slope, read, _ = _slope(loss, p, upper)
        return -torch.autograd.grad(slope, read, x)[0]

    return contribution


def hypertorch_cg(loss, p, upper, cotangent, budget, step):
    """hypertorch's CG (Grazzi et al. 2020) as published: it returns the iterate before the one that converged."""
    slope, read, own = _slope(loss, p, upper)
    x, r = torch.zeros_like(cotangent), cotangent.clone()
    direction = r.clone()
    for _ in range(budget):
        product = torch.autograd.grad(slope, own, direction, retain_graph=True)[0]
        length = (r @ r) / (direction @ product)
        following = x + length * direction
        rest = r - length * product
        if rest.norm() < 1e-5:
            break
        direction = rest + (rest @ rest) / (r @ r) * direction
        x, r = following, rest
    return -torch.autograd.grad(slope, read, x)[0]


def hypertorch_fixed_point(loss, p, upper, cotangent, budget, step):
    """hypertorch's fixed_point, for the map of a gradient step: ``v <- v - step H v + a``, from 0."""
    slope, read, own = _slope(loss, p, upper)
    v = torch.zeros_like(cotangent)
    for _ in range(budget):
        v = v - step * torch.autograd.grad(slope, own, v, retain_graph=True)[0] + cotangent
    return -step * torch.autograd.grad(slope, read, v)[0]


def _slope(loss, p, upper):
    own, read = p.clone().requires_grad_(), upper.clone().requires_grad_()
    return torch.autograd.grad(loss(own, read), own, create_graph=True)[0], read, own
