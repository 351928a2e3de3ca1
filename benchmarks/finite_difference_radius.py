"""Relative error of finite-difference mixed products against exact ones, over the radius of the perturbation.

The guided autoencoder on CIFAR-10's size (ViT 192 wide, 6 deep, patch 4, batch 128), after some pretraining: the
products at the finetuning and pretraining levels for the masking network's hypergradient, along its actual cotangents.
``x 1`` is the solver's default radius.

    python benchmarks/finite_difference_radius.py data=cifar10 data.path=DIR mask.policy=topk precision=bf16
"""

from __future__ import annotations

import sys

import torch

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.problems.lower_levels import lower_level
from multilevel.solvers import LowerLevel
from multilevel.solvers.products import FiniteDifferenceProducts, ForwardProducts, ReverseProducts, default_radius
from multilevel.solvers.vectors import flatten

FACTORS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
STEPS = 15  # of the top level: 30 pretraining updates


def main(overrides: list[str]) -> None:
    config = compose_config(["model=small", f"steps={STEPS}", "evaluate=false", *overrides])
    recipe = build_recipe(config)
    engine = Engine(recipe.graph, seed=config.seed, precision=config.precision)
    engine.run(STEPS)
    print(f"precision {config.precision}, mask policy {config.mask.policy}, weights {config.mask.weights}")
    cotangents = engine.updates.direct_gradient("mask", engine.evaluator)
    for level in recipe.graph.passes("mask"):
        compare(engine, level, list(recipe.graph.reads[level]), cotangents[level])


def compare(engine: Engine, level: str, read: list[str], cotangent: dict[str, torch.Tensor]) -> None:
    lower = lower_level(engine.evaluator, engine.updates.record_of(level), level, read)
    exact = mixed(lower, cotangent, None)
    radius = default_radius(lower.parameters, lower.arithmetic)
    norm = flatten(lower.parameters).norm().item()
    count = flatten(lower.parameters).numel()
    print(f"{level}: {count:,} parameters of norm {norm:.3g}, exact |product| {exact.norm():.3g}")
    precision, engine.evaluator.precision = engine.evaluator.precision, "float32"
    reference = mixed(lower, cotangent, None)
    engine.evaluator.precision = precision
    print(f"    exact product in {precision} against exact in float32: {error(exact, reference):.2g}")
    forward = torch.cat([flatten(tensors) for tensors in ForwardProducts(lower).mixed(cotangent).values()])
    print(f"    product=forward against product=reverse: {error(forward, exact):.2g}")
    for factor in FACTORS:
        found = mixed(lower, cotangent, factor * radius)
        against = f"{error(found, exact):9.2g}   {error(found, reference):9.2g}"
        print(f"    radius {factor * radius:8.2g} (x {factor:<4g})  error {against}  (against {precision}, float32)")


def mixed(lower: LowerLevel, cotangent: dict[str, torch.Tensor], radius: float | None) -> torch.Tensor:
    products = ReverseProducts(lower) if radius is None else FiniteDifferenceProducts(lower, radius)
    return torch.cat([flatten(tensors) for tensors in products.mixed(cotangent).values()])


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


if __name__ == "__main__":
    main(sys.argv[1:])
