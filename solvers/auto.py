"""Chooses a solver by a stated rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from multilevel.solvers.base import Response, Solver
from multilevel.solvers.conjugate_gradient import ConjugateGradient
from multilevel.solvers.dense import Dense
from multilevel.solvers.identity import Identity
from multilevel.solvers.lower_level import LowerLevel
from multilevel.solvers.products import ProductName
from multilevel.solvers.ranges import NonNegative
from multilevel.solvers.sama import Sama
from multilevel.solvers.vectors import Tensors

DENSE_LIMIT = 200
ITERATIVE_LIMIT = 20_000


@dataclass
class Auto(Solver):
    """Chooses a solver by the lower level's size, declared outputs and optimizer, and reports the choice and the
    reason.

    The first match applies. At most 200 parameters: ``dense``. At most 20,000, with declared outputs and criterion:
    ``conjugate_gradient`` with Gauss-Newton curvature, damping 0.01 and a warm start. Trained with Adam or AdamW:
    ``sama``. Otherwise: ``identity``.

    Assumes: what the chosen solver assumes.
    Costs: what the chosen solver costs; never more than 200 products.
    Use when: starting on a problem, before a comparison.

    Args:
        product: how products are formed, unless the chosen solver needs another form.
        damping: added to the Hessian's diagonal, >= 0; None: 0.01 for ``conjugate_gradient``, 0 for the others.

    Examples:
        The level of ``LowerLevel``'s example has three parameters:

        >>> response = Auto().respond(lower, cotangent)
        >>> response.report.choice
        'solver=dense: 3 parameters, at most 200'
    """

    product: ProductName = field(default="reverse", kw_only=True)
    damping: NonNegative | None = field(default=None, kw_only=True)

    def resolved(self, lower: LowerLevel) -> tuple[Solver, str]:
        count = sum(tensor.numel() for tensor in lower.parameters.values())
        if count <= DENSE_LIMIT:
            dense = Dense(product=self.product, damping=self.damping or 0.0)
            return dense, f"dense: {count:,} parameters, at most {DENSE_LIMIT}"
        if count <= ITERATIVE_LIMIT and lower.predictions is not None:
            damping = 0.01 if self.damping is None else self.damping
            solver = ConjugateGradient(curvature="gauss_newton", warm_start=True, product=self.product, damping=damping)
            return solver, (
                f"conjugate_gradient with Gauss-Newton curvature: {count:,} parameters, at most {ITERATIVE_LIMIT:,}, "
                "and the level declares outputs and criterion"
            )
        if lower.rule is not None and lower.rule.kind != "sgd":
            return Sama(), f"sama: {count:,} parameters, trained with {lower.rule.kind}"
        return Identity(), f"identity: {count:,} parameters, not trained with Adam"

    def respond(self, lower: LowerLevel, cotangent: Tensors) -> Response:
        solver, choice = self.resolved(lower)
        response = solver.respond(lower, cotangent)
        chosen = ", ".join(filter(None, [f"solver={choice}", response.report.choice]))
        return replace(response, report=replace(response.report, choice=chosen))
