"""Reverse mode through the lower level's own updates."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from multilevel.solvers.base import Response, Solver, SolveReport
from multilevel.solvers.errors import SolveError
from multilevel.solvers.lower_level import LowerLevel, Step
from multilevel.solvers.products import PRODUCTS, ProductName, Products
from multilevel.solvers.ranges import Count, PositiveNumber
from multilevel.solvers.stages import keyed_by_kind, tensors_of_kind
from multilevel.solvers.vectors import Tensors, zeros_like


@dataclass
class UnrolledSolver(Solver):
    """Differentiates the lower level's last updates instead of its minimum.

    Args:
        steps: updates to differentiate, at least 1: the last since the top level's last update, or all if there were
            fewer.
        product: how the products of each update are formed: reverse, forward or finite_difference.
        radius: norm of a finite difference's perturbation; None computes it.
    """

    steps: Count = 5
    product: ProductName = field(default="reverse", kw_only=True)
    radius: PositiveNumber | None = field(default=None, kw_only=True)

    @property
    def recorded_steps(self) -> int:
        return self.steps

    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        if not lower.steps:
            raise SolveError("no update of the lower level is recorded: train a step first (with SGD, Adam or AdamW)")
        return self.through(lower, cotangent)

    @abstractmethod
    def through(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        """``respond`` for a level with recorded steps and a nonzero cotangent."""

    def products_of(self, step: Step, lower: LowerLevel) -> Products:
        reads = {level: step.reads[level] for level in lower.reads}
        at_step = LowerLevel(step.losses, step.parameters, reads, lower.arithmetic)
        return PRODUCTS[self.product](at_step, self.radius)


@dataclass
class Unrolled(UnrolledSolver):
    """The derivative of the lower parameters through their last ``steps`` updates (Franceschi et al. 2017; truncated:
    Shaban et al. 2019).

    Each update is recorded with its starting point, so updates are differentiated one by one and memory holds the
    activations of only one update. Differentiates SGD (momentum, Nesterov, weight decay), Adam (amsgrad) and AdamW,
    gradient clipping, the optimizer's state, and changes of gradient and weights by hooks and ``Callback.on_update``.

    Assumes: nothing about the lower Hessian, but that only the recorded updates matter. A level that reads levels below
        it is treated as if it had read their last values in every update.
    Costs: one evaluation, Hessian-vector product and mixed product per update; memory for ``steps`` copies of
        parameters and optimizer state.
    Use when: the lower level is far from its minimum, or its optimizer's path is part of the problem (MAML).

    Examples:
        After two SGD updates at rate 1/4, the level of ``LowerLevel``'s example gives two terms of the Neumann series.

        >>> p = torch.zeros(3, requires_grad=True)
        >>> rule = UpdateRule.of(torch.optim.SGD([p], lr=0.25), {"p": p})
        >>> trained = replace(lower, steps=2 * [Step(lower.losses, lower.parameters, lower.reads, rule)])
        >>> Unrolled(steps=2).respond(trained, cotangent).contributions["upper"]["r"]
        tensor([0.4375, 0.3750, 0.2500])
    """

    def through(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        total = {level: zeros_like(tensors) for level, tensors in lower.reads.items()}
        cotangents = keyed_by_kind("parameters", cotangent)
        evaluations = count = 0
        for step in reversed(lower.steps[-self.steps :]):
            products = self.products_of(step, lower)
            for stage in reversed(step.stages(products.gradient())):
                cotangents = stage.pull(cotangents)
            zeros = zeros_like(step.parameters)
            pulled = {**zeros, **tensors_of_kind("gradient", cotangents)}
            arriving = {**zeros, **tensors_of_kind("parameters", cotangents)}
            curved, mixed = products.hessian(pulled), products.mixed(pulled)
            for level, tensors in total.items():
                for name, value in tensors.items():
                    # the dependence of hooks and callbacks on the level read, in addition to the loss's
                    taken = cotangents.get(("reads", level, name), 0)
                    tensors[name] = value + mixed[level][name] + taken
            carried = {key: tensor for key, tensor in cotangents.items() if key[0] in ("state", "hook")}
            parameters = {name: arriving[name] + curved[name] for name in arriving}
            cotangents = keyed_by_kind("parameters", parameters) | carried
            evaluations, count = evaluations + products.evaluations, count + products.products
        return Response(total, SolveReport(evaluations, count))
