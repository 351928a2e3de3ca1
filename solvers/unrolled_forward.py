"""Forward mode through the lower level's own updates."""

from __future__ import annotations

from dataclasses import dataclass

from multilevel.solvers.base import Response, SolveReport
from multilevel.solvers.lower_level import LowerLevel
from multilevel.solvers.products import Products
from multilevel.solvers.ranges import Count, require
from multilevel.solvers.stages import Keyed, keyed_by_kind, keyed_nested, tensors_of_kind
from multilevel.solvers.unrolled import UnrolledSolver
from multilevel.solvers.vectors import Tensors, flatten, zeros_like


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

    def through(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        count = sum(tensor.numel() for tensors in lower.reads.values() for tensor in tensors.values())
        remedy = f"at least {count} for {count} upper parameters, or solver=unrolled"
        require("solver.limit", self.limit, count <= self.limit, remedy)
        steps = lower.steps[-self.steps :]
        spent = [self.products_of(step, lower) for step in steps]
        # Evaluated separately, since a product's own gradient may keep its graph.
        stages = [step.stages(Products.gradient(products)) for step, products in zip(steps, spent, strict=True)]
        total = {level: zeros_like(tensors) for level, tensors in lower.reads.items()}
        for level, tensors in total.items():
            for name, tensor in tensors.items():
                for index in range(tensor.numel()):
                    direction = {name: zeros_like(tensors) for name, tensors in lower.reads.items()}
                    direction[level][name].view(-1)[index] = 1
                    zeros = zeros_like(lower.parameters)
                    tangents: Keyed = {}
                    for products, chain in zip(spent, stages, strict=True):
                        slope = products.hessian({**zeros, **tensors_of_kind("parameters", tangents)}, direction)
                        tangents |= keyed_by_kind("gradient", slope) | keyed_nested("reads", direction)
                        for stage in chain:
                            tangents = stage.push(tangents)
                    end = flatten({**zeros, **tensors_of_kind("parameters", tangents)})
                    tensor.view(-1)[index] = flatten(cotangent).dot(end)
        evaluations = sum(products.evaluations for products in spent)
        return Response(total, SolveReport(evaluations, sum(products.products for products in spent)))
