"""Reverse mode through the levels' own updates."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from multilevel.solvers.base import Response, Solver, SolveReport
from multilevel.solvers.errors import SolveError
from multilevel.solvers.lower_level import LowerLevel, Step
from multilevel.solvers.products import PRODUCTS, ProductName, Products
from multilevel.solvers.ranges import Count, PositiveNumber
from multilevel.solvers.stages import Keyed, keyed_by_kind, tensors_of_kind
from multilevel.solvers.vectors import Tensors, zeros_like

#: By level.
LowerLevels = Mapping[str, LowerLevel]
Gradients = Mapping[str, Tensors]


@dataclass(frozen=True)
class Unrolling:
    """The derivative of levels through their recorded updates.

    Attributes:
        contributions: terms to add to the cotangents of the levels read, apart from the levels themselves.
        reports: what each level cost.
        arrived: for each level with a differentiated update, the cotangent of its parameters after the last.
    """

    contributions: Mapping[str, Tensors]
    reports: Mapping[str, SolveReport]
    arrived: Mapping[str, Tensors] = field(default_factory=dict)


@dataclass
class UnrolledSolver(Solver):
    """Differentiates the lower levels' last updates instead of their minimum.

    If every level that a hypergradient passes through has this solver, their updates are differentiated together in the
    order in which they were made. If solvers are mixed, or levels read each other, each level's updates are
    differentiated by themselves, as if each had read the last values of the levels below.

    Args:
        steps: updates of the level to differentiate, at least 1: the last, or all if there were fewer; None: 5, or all
            with ``outer_steps``.
        outer_steps: differentiate the level's updates within as many updates of the top level, in all of which the
            upper parameters are perturbed alike; None: within the current one. More than one keeps their records in
            memory and in checkpoints.
        product: how the products of each update are formed: reverse, forward or finite_difference.
        radius: norm of a finite difference's perturbation; None computes it.
    """

    steps: Count | None = None
    outer_steps: Count | None = field(default=None, kw_only=True)
    product: ProductName = field(default="reverse", kw_only=True)
    radius: PositiveNumber | None = field(default=None, kw_only=True)

    @property
    def recorded_steps(self) -> int:
        return self.steps or (5 if self.outer_steps is None else sys.maxsize)

    @property
    def recorded_outer_steps(self) -> int:
        return self.outer_steps or 1

    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        lowers, solvers = {lower.name: lower}, {lower.name: self}
        unrolling = self.unroll(lowers, solvers, {lower.name: cotangent})
        return Response(unrolling.contributions, unrolling.reports[lower.name])

    @classmethod
    @abstractmethod
    def unroll(cls, lowers: LowerLevels, solvers: Mapping[str, UnrolledSolver], cotangents: Gradients) -> Unrolling:
        """Differentiate the recorded updates of several levels, in the order in which they were made.

        Args:
            lowers: the levels.
            solvers: the solver of each.
            cotangents: the derivative arriving at each level's parameters after its last update; none is 0.

        Raises:
            SolveError: no update of a level is recorded.
        """

    def products_of(self, step: Step, lower: LowerLevel) -> Products:
        reads = {level: step.reads[level] for level in lower.reads}
        at_step = LowerLevel(step.losses, step.parameters, reads, lower.arithmetic)
        return PRODUCTS[self.product](at_step, self.radius)


def timeline(lowers: LowerLevels, solvers: Mapping[str, UnrolledSolver]) -> list[tuple[str, Step]]:
    """The updates to differentiate, each with its level, in the order in which they were made.

    Raises:
        SolveError: no update of a level is recorded.
    """
    if not all(lower.steps for lower in lowers.values()):
        raise SolveError("no update of the lower level is recorded: train a step first (with SGD, Adam or AdamW)")
    steps = [(level, step) for level, lower in lowers.items() for step in lower.steps[-solvers[level].recorded_steps :]]
    return sorted(steps, key=lambda pair: pair[1].position)


def reads_outside(lowers: LowerLevels) -> dict[str, dict[str, Tensor]]:
    """Zeros for the parameters of every level that the levels read, apart from themselves."""
    return {
        read: zeros_like(tensors)
        for lower in lowers.values()
        for read, tensors in lower.reads.items()
        if read not in lowers
    }


def add_to(total: dict[Any, Tensor], terms: Mapping[Any, Tensor]) -> None:
    for key, term in terms.items():
        total[key] = total[key] + term if key in total else term


def report_with(total: SolveReport, products: Products) -> SolveReport:
    return SolveReport(total.evaluations + products.evaluations, total.products + products.products)


@dataclass
class Unrolled(UnrolledSolver):
    """The derivative of the lower parameters through their last updates (Franceschi et al. 2017; truncated: Shaban et
    al. 2019), in the order of the schedule.

    Each update is recorded with its starting point, so updates are differentiated one by one and memory holds the
    activations of only one update. Differentiates SGD (momentum, Nesterov, weight decay), Adam (amsgrad) and AdamW,
    gradient clipping, the optimizer's state, and changes of gradient and weights by hooks and ``Callback.on_update``.

    Assumes: nothing about the lower Hessian, but that only the recorded updates matter. Where another level on the path
        has another solver (``unrolled_forward`` is one), a perturbation of the levels that a level reads acts as if
        their last values had been read in every update.
    Costs: one evaluation, Hessian-vector product and mixed product per update; memory for the recorded copies of
        parameters, optimizer state and batches.
    Use when: the lower level is far from its minimum, its optimizer's path is part of the problem (MAML), or several
        levels train together and the next ``outer_steps`` matter, not the end of training.

    Examples:
        After two SGD updates at rate 1/4, the level of ``LowerLevel``'s example gives two terms of the Neumann series.

        >>> p = torch.zeros(3, requires_grad=True)
        >>> rule = UpdateRule.of(torch.optim.SGD([p], lr=0.25), {"p": p})
        >>> trained = replace(lower, steps=2 * [Step(lower.losses, lower.parameters, lower.reads, rule)])
        >>> Unrolled(steps=2).respond(trained, cotangent).contributions["upper"]["r"]
        tensor([0.4375, 0.3750, 0.2500])
    """

    @classmethod
    def unroll(cls, lowers: LowerLevels, solvers: Mapping[str, UnrolledSolver], cotangents: Gradients) -> Unrolling:
        carried = {level: keyed_by_kind("parameters", cotangents.get(level, {})) for level in lowers}
        total, reports = reads_outside(lowers), dict.fromkeys(lowers, SolveReport())
        arrived: dict[str, Tensors] = {}
        for level, step in reversed(timeline(lowers, solvers)):
            if not carried[level]:
                continue
            lower, products = lowers[level], solvers[level].products_of(step, lowers[level])
            arrived.setdefault(level, tensors_of_kind("parameters", carried[level]))
            carried[level], contributions = pulled_through(step, lower, products, carried[level])
            for read, tensors in contributions.items():
                if read in lowers:
                    add_to(carried[read], keyed_by_kind("parameters", tensors))
                else:
                    add_to(total[read], tensors)
            reports[level] = report_with(reports[level], products)
        return Unrolling(total, reports, arrived)


def pulled_through(
    step: Step, lower: LowerLevel, products: Products, cotangents: Keyed
) -> tuple[Keyed, dict[str, dict[str, Tensor]]]:
    """Map cotangents of the level's parameters, state and hook tensors after an update to those before it, and to
    contributions to the levels read."""
    for stage in reversed(step.stages(products.gradient())):
        cotangents = stage.pull(cotangents)
    zeros = zeros_like(step.parameters)
    slopes = {**zeros, **tensors_of_kind("gradient", cotangents)}
    arriving = {**zeros, **tensors_of_kind("parameters", cotangents)}
    curved, contributions = products.hessian(slopes), products.mixed(slopes)
    for level, tensors in contributions.items():
        for name in tensors:  # the dependence of hooks and callbacks on the level read, in addition to the loss's
            tensors[name] = tensors[name] + cotangents.get(("reads", level, name), 0)
    before = {key: tensor for key, tensor in cotangents.items() if key[0] in ("state", "hook")}
    before |= keyed_by_kind("parameters", {name: arriving[name] + curved[name] for name in arriving})
    return {key: tensor for key, tensor in before.items() if key not in step.restarted}, contributions
