"""Forward mode through the lower level's own updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multilevel.solvers.base import SolveReport
from multilevel.solvers.lower_level import LowerLevel, Step
from multilevel.solvers.products import Products
from multilevel.solvers.ranges import Count, require
from multilevel.solvers.stages import Keyed, Stage, keyed_by_kind, keyed_nested, tensors_of_kind
from multilevel.solvers.unrolled import (
    Gradients,
    LowerLevels,
    UnrolledSolver,
    Unrolling,
    reads_outside,
    report_with,
    timeline,
)
from multilevel.solvers.vectors import zeros_like


@dataclass
class UnrolledForward(UnrolledSolver):
    """The result of ``unrolled``, computed forward from the oldest update with one tangent per upper parameter
    (Franceschi et al. 2017).

    Assumes: few parameters in the levels that the lower level reads.
    Costs: one product per update and upper parameter; memory for one tangent of parameters and state, without a reverse
        pass.
    Use when: there are few hyperparameters and many updates.

    Args:
        limit: largest number of upper parameters to accept.

    Raises:
        SettingError: the levels read have more parameters than the limit.

    Examples:
        After two SGD updates at rate 1/4, the level of ``LowerLevel``'s example gives the same contribution as
        ``unrolled``.

        >>> p = torch.zeros(3, requires_grad=True)
        >>> rule = UpdateRule.of(torch.optim.SGD([p], lr=0.25), {"p": p})
        >>> trained = replace(lower, steps=2 * [Step(lower.losses, lower.parameters, lower.reads, rule)])
        >>> UnrolledForward(steps=2).respond(trained, cotangent).contributions["upper"]["r"]
        tensor([0.4375, 0.3750, 0.2500])
    """

    limit: Count = 100

    @classmethod
    def unroll(cls, lowers: LowerLevels, solvers: Mapping[str, UnrolledSolver], cotangents: Gradients) -> Unrolling:
        total = reads_outside(lowers)
        cls._check_limit(
            solvers.values(), sum(tensor.numel() for tensors in total.values() for tensor in tensors.values())
        )
        steps = [
            (level, step, solvers[level].products_of(step, lowers[level])) for level, step in timeline(lowers, solvers)
        ]
        # Evaluated separately, since a product's own gradient may keep its graph.
        stages = [step.stages(Products.gradient(products)) for _, step, products in steps]
        for level, tensors in total.items():
            for name, tensor in tensors.items():
                for index in range(tensor.numel()):
                    direction = {read: zeros_like(others) for read, others in total.items()}
                    direction[level][name].view(-1)[index] = 1
                    tangents: dict[str, Keyed] = {lower: {} for lower in lowers}
                    for (moved, step, products), chain in zip(steps, stages, strict=True):
                        reads = _read_tangents(lowers[moved], tangents, direction)
                        tangents[moved] = pushed_through(step, products, chain, tangents[moved], reads)
                    tensor.view(-1)[index] = sum(
                        (cotangent[key] * tangent).sum()
                        for lower, cotangent in cotangents.items()
                        for key, tangent in tensors_of_kind("parameters", tangents[lower]).items()
                    )
        reports = dict.fromkeys(lowers, SolveReport())
        for level, _, products in steps:
            reports[level] = report_with(reports[level], products)
        return Unrolling(total, reports)

    @staticmethod
    def _check_limit(solvers: Iterable[Any], count: int) -> None:
        remedy = f"at least {count} for {count} upper parameters, or solver=unrolled"
        for solver in solvers:
            require("solver.limit", solver.limit, count <= solver.limit, remedy)


def _read_tangents(lower: LowerLevel, tangents: Mapping[str, Keyed], direction: Gradients) -> Gradients:
    """The tangents of the parameters that a level reads: its own for each unrolled level, ``direction`` for others."""
    return {
        read: {**zeros_like(tensors), **tensors_of_kind("parameters", tangents[read])}
        if read in tangents
        else direction[read]
        for read, tensors in lower.reads.items()
    }


def pushed_through(step: Step, products: Products, stages: Sequence[Stage], tangents: Keyed, reads: Gradients) -> Keyed:
    """Map tangents of the level's parameters, state and hook tensors before an update, and of the levels read, to those
    after it."""
    tangents = {key: tensor for key, tensor in tangents.items() if key not in step.restarted}
    slope = products.hessian({**zeros_like(step.parameters), **tensors_of_kind("parameters", tangents)}, reads)
    tangents |= keyed_by_kind("gradient", slope) | keyed_nested("reads", reads)
    for stage in stages:
        tangents = stage.push(tangents)
    return tangents
